#compdef shadowset
# Completions of shadowset for zsh: the program itself knows its words, units, members,
# bitmaps and operations.
_shadowset() {
    local one files=
    local -a found
    for one in "${(@f)$(${~words[1]} complete -- "${(@)words[2,CURRENT]}" 2> /dev/null)}"; do
        case $one in
            :files) files=_files ;;
            :dirs) files='_files -/' ;;
            ?*) found+=("${${one%%$'\t'*}//:/\\:}:${one#*$'\t'}") ;;
        esac
    done
    (( $#found )) && _describe -V word found
    [[ -n $files ]] && ${=files}
}
if [[ ${funcstack[1]} == _shadowset ]]; then
    _shadowset "$@"
else
    compdef _shadowset shadowset
fi
