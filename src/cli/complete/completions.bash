# Completions of shadowset for bash: the program itself knows its words, units, members,
# bitmaps and operations.
_shadowset() {
    local line=${COMP_LINE:0:COMP_POINT} one cur files= words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[${#words[@]} - 1]}
    COMPREPLY=()
    while IFS= read -r one; do
        case $one in
            :files) files=-f ;;
            :dirs) files=-d ;;
            *) COMPREPLY+=("${one%%$'\t'*}") ;;
        esac
    done < <("${1/#\~/$HOME}" complete -- "${words[@]:1}" 2> /dev/null)
    # What stands before the last = or : is not replaced.
    local kept=${cur%"${cur##*[=:]}"}
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    if [[ -n $files ]]; then
        compopt -o filenames 2> /dev/null
        while IFS= read -r one; do
            COMPREPLY+=("$one")
        done < <(compgen "$files" -- "${cur##*=}")
    fi
}
complete -F _shadowset shadowset
