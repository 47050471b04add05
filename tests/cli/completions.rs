//! Completions as bash asks for them: the script is read, and what it offers is printed.

use std::fs;

use crate::Place;

/// What bash offers behind the line.
fn offered(place: &Place, line: &str) -> Vec<String> {
    let script = r#"
        source <(shadowset completions bash)
        [[ $(complete -p shadowset) == *"-F _shadowset"* ]] || exit 9
        COMP_LINE=$1 COMP_POINT=${#1}
        # As bash splits a line: = and : are words of their own.
        read -ra COMP_WORDS <<< "${1//[=:]/ & }"
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _shadowset shadowset
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut command = place.command(&[]);
    let program = command.get_program().to_owned();
    let dir = std::path::Path::new(&program)
        .parent()
        .expect("a directory");
    let path = std::env::var("PATH").expect("a path");
    let environment: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command = std::process::Command::new("bash");
    command
        .args(["--norc", "-c", script, "bash", line])
        .current_dir(place.path(""))
        .env("PATH", format!("{}:{path}", dir.display()))
        .envs(environment);
    let output = command.output().expect("bash starts");
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {says}");
    assert_eq!(says, "", "{line}");
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = out.lines().filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

#[test]
fn bash_offers_units_members_operations_and_words() {
    let mut place = Place::new();
    place.tree("steady");
    fs::write(
        place.path("conf/payroll.toml"),
        "[[member]]\nname = \"a\"\npath = \"/a\"\n",
    )
    .expect("file");
    fs::write(place.path("image one"), "").expect("file");
    let table: [(&str, &[&str]); 13] = [
        ("shadowset sta", &["status", "stall"]),
        (
            "shadowset op ",
            &["list", "show", "pause", "resume", "cancel", "wait"],
        ),
        ("shadowset detach ", &["dsa1"]),
        ("shadowset detach dsa1 ", &["m1"]),
        ("shadowset detach dsa1 m1 --po", &["--policy"]),
        // What stands before the = stays in the line.
        (
            "shadowset detach dsa1 m1 --policy=mini",
            &["minicopy", "minicopy=optional"],
        ),
        (
            "shadowset detach dsa1 m1 --policy minicopy=o",
            &["optional"],
        ),
        ("shadowset wait dsa1 --for member=m1:s", &["source"]),
        ("shadowset op show dsa1 ", &["3"]),
        ("shadowset op pause dsa1 ", &[]),
        ("shadowset mount pay", &["payroll"]),
        ("shadowset examine ima", &["image one"]),
        ("shadowset mount payroll em", &["empty"]),
    ];
    for (line, expected) in table {
        assert_eq!(offered(&place, line), expected, "{line}");
    }
}

#[test]
fn each_shell_has_a_script_and_json_too() {
    let place = Place::new();
    for (shell, word) in [
        ("bash", "complete -F _shadowset shadowset"),
        ("zsh", "#compdef shadowset"),
        ("fish", "complete -c shadowset"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let (script, _) = place.expect(0, &["completions", shell]);
        assert!(script.contains(word), "{shell}: {script}");
        let (value, _) = place.expect(0, &["completions", shell, "--json"]);
        assert_eq!(crate::json(&value)["script"], script);
    }
}
