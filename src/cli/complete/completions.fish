# Completions of shadowset for fish: the program itself knows its words, units, members,
# bitmaps and operations.
function __shadowset_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for one in ($words[1] complete -- $words[2..-1] "$current" 2> /dev/null)
        switch $one
            case :files
                __fish_complete_path "$current"
            case :dirs
                __fish_complete_directories "$current"
            case '*'
                echo $one
        end
    end
end
complete -c shadowset -f -a '(__shadowset_words)'
