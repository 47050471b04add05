//! The tour of the README and the EXAMPLES of the manual pages, run as they stand.
//!
//! They name places such as `/srv/images`. Each runs in a mount namespace of its own, on an overlay of
//! the root: nothing of the machine changes.

use std::process::{Command, Stdio};

/// What stands before a run: a root of its own, with empty places for images and mounts.
const ROOT: &str = r#"
set -eu
T=$(mktemp -d); trap 'rmdir $T 2> /dev/null || true' EXIT
mount -t tmpfs tmpfs $T; mkdir $T/up $T/work $T/root
mount -t overlay overlay -o lowerdir=/,upperdir=$T/up,workdir=$T/work $T/root
for dir in dev proc sys; do mount --rbind /$dir $T/root/$dir; done
for dir in srv mnt run tmp; do mount -t tmpfs tmpfs $T/root/$dir; done
cp "$PROGRAM" $T/root/usr/local/bin/shadowset
cp "${PROGRAM%/*}/mount-shadowset" $T/root/tmp/helper
printf %s "$SCRIPT" > $T/root/tmp/script
chroot $T/root timeout -k 5 100 bash -c 'cd; PATH=/usr/local/bin:/usr/sbin:/sbin:/usr/bin:/bin
    . /tmp/script' || code=$?
umount -l $T; exit ${code:-0}
"#;

/// What a run begins with: it takes away what a failure leaves.
const BEGIN: &str = r#"
set -u
leave() { umount /mnt/data; losetup -d "${dev:-}"; shadowset stop dsa1 --force; } > /dev/null 2>&1
trap leave EXIT
mkdir -p /srv/images /mnt/shadow /backup
"#;

/// A command of a text, and what it prints where the text says so.
#[derive(Debug)]
struct Step {
    command: String,
    prints: Vec<String>,
}

/// The steps of a block. Lines behind the prompt are commands, others are what they print; without a
/// prompt all are commands.
fn steps(block: &str, prompt: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut goes_on = false;
    let has_prompt = block.starts_with(prompt);
    for line in block.lines() {
        let command = match has_prompt {
            true => line.strip_prefix(prompt),
            false => Some(line),
        };
        match (command, steps.last_mut()) {
            (_, Some(last)) if goes_on => last.command.push_str(&format!("\n{line}")),
            (Some(command), _) => steps.push(Step {
                command: command.to_owned(),
                prints: Vec::new(),
            }),
            (None, Some(last)) => last.prints.push(line.to_owned()),
            (None, None) => panic!("a block begins with a command: {block}"),
        }
        goes_on = line.ends_with('\\');
    }
    steps
}

/// Runs the steps in one shell; each that says what it prints has to print that, each other has to succeed.
fn run(setup: &str, steps: &[Step], end: &str) {
    let mut script = format!("{BEGIN}\nset -e\n{setup}\nset +e\nexec 2>&1\n");
    for step in steps {
        let Step { command, .. } = step;
        script.push_str(&format!("{{ {command}\n}}\nprintf '\\n@@ %s\\n' $?\n"));
    }
    script.push_str(&format!("set -e\n{end}\ntrap - EXIT\n"));
    let mut shell = Command::new("unshare");
    shell
        .args(["-m", "--propagation", "private", "bash", "-c", ROOT])
        .env("PROGRAM", env!("CARGO_BIN_EXE_shadowset"))
        .env("SCRIPT", &script)
        .env_remove("SHADOWSET_CONFIG_DIR")
        .env_remove("SHADOWSET_RUNTIME_DIR")
        .stdin(Stdio::null());
    let output = shell.output().expect("unshare starts");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut rest = out.as_str();
    for step in steps {
        let (printed, after) = rest
            .split_once("\n@@ ")
            .unwrap_or_else(|| panic!("not run: {step:#?}\n{out}{err}"));
        let (code, after) = after.split_once('\n').unwrap_or((after, ""));
        rest = after;
        if step.prints.is_empty() {
            assert_eq!(code, "0", "{step:#?}\n{printed}");
            continue;
        }
        let printed = printed.lines().map(without_line_number);
        let printed: Vec<String> = printed.map(|line| without_ids(&line)).collect();
        let prints: Vec<String> = step.prints.iter().map(|line| without_ids(line)).collect();
        assert_eq!(printed, prints, "{}", step.command);
    }
    assert!(output.status.success(), "the end: {rest}{err}");
}

/// A script tells the line of an error, a person's shell does not.
fn without_line_number(line: &str) -> String {
    match line
        .split_once(": line ")
        .and_then(|(shell, rest)| Some((shell, rest.split_once(": ")?)))
    {
        Some((_, (_, rest))) => format!("bash: {rest}"),
        None => line.to_owned(),
    }
}

/// The id of a bitmap is another one each time.
fn without_ids(line: &str) -> String {
    let is_id = |word: &&str| word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = line.split(' ').map(|word| match is_id(&word) {
        true => "ID",
        false => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The literal displays of a page behind `EXAMPLES`, as they read.
fn displays(page: &str) -> Vec<String> {
    let (_, rest) = page.split_once(".Sh EXAMPLES\n").expect("EXAMPLES");
    let rest = rest.split("\n.Sh ").next().unwrap_or(rest);
    let displays = rest.split(".Bd -literal -offset indent\n").skip(1);
    let text = |display: &str| {
        let text = display.split(".Ed").next().unwrap_or_default();
        let text = text.replace("\\e", "\\").replace("\\&", "");
        text.replace("\\-", "-")
    };
    displays.map(text).collect()
}

fn examples(page: &str) -> Vec<Step> {
    let all = displays(page).into_iter();
    all.flat_map(|text| steps(&text, "# ")).collect()
}

/// The blocks of code of a section of a Markdown text.
fn blocks(text: &str, section: &str) -> Vec<Step> {
    let (_, rest) = text
        .split_once(&format!("## {section}\n"))
        .expect("the section");
    let rest = rest.split("\n## ").next().unwrap_or(rest);
    let mut blocks = vec![String::new()];
    for line in rest.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(code), Some(block)) => block.push_str(&format!("{code}\n")),
            (None, Some(block)) if !block.is_empty() && !line.is_empty() => {
                blocks.push(String::new());
            }
            _ => {}
        }
    }
    blocks
        .iter()
        .filter(|block| !block.is_empty())
        .flat_map(|block| steps(block, "$ "))
        .collect()
}

#[test]
fn the_tour_of_the_readme_works_when_it_is_pasted() {
    let tour = blocks(include_str!("../../README.md"), "Five minutes");
    assert!(tour.len() > 15, "{tour:#?}");
    // The program is built already, and stays first in the path.
    run("cargo() { :; }", &tour, "[ -z \"$(ls /srv/images)\" ]");
}

#[test]
fn the_examples_of_shadowset_8_work() {
    let steps = examples(include_str!("../../man/shadowset.8"));
    assert!(steps.len() >= 5, "{steps:#?}");
    run("", &steps, "shadowset stop dsa1 --wait");
}

#[test]
fn the_examples_of_shadowset_control_7_work() {
    let steps = examples(include_str!("../../man/shadowset-control.7"));
    assert!(steps.len() >= 5, "{steps:#?}");
    let setup = "cd /srv/images
        shadowset create dsa1 --size 16M --member m1=m1.img --member m2=m2.img --member m3=m3.img
        shadowset mount dsa1 /mnt/shadow";
    run(setup, &steps, "shadowset stop dsa1 --wait");
}

#[test]
fn the_examples_of_mount_shadowset_8_work() {
    let displays = displays(include_str!("../../man/mount.shadowset.8"));
    let [fstab, commands] = &displays[..] else {
        panic!("an fstab and commands: {displays:#?}");
    };
    let setup = format!(
        "for name in mount.shadowset mount.fuse.shadowset umount.shadowset umount.fuse.shadowset; do
            cp /tmp/helper /sbin/$name
        done
        mkdir -p /srv/dsa1 /srv/dsa2 /srv/dsa3 /img; cd /img
        for unit in dsa1 dsa2; do
            shadowset create $unit --size 4M --member m1=$unit.1 --member m2=$unit.2
        done
        shadowset create dsa3 --size 4M --member m1=a.raw --member m2=b.raw
        cat > /etc/fstab <<'END'\n{fstab}END"
    );
    run(
        &setup,
        &steps(commands, "# "),
        "umount /srv/dsa2; ! grep ' /srv/dsa' /proc/mounts",
    );
}

#[test]
fn a_text_is_cut_into_commands_and_what_they_print() {
    let found = steps("$ a \\\n    b\n$ c\nd\ne\n", "$ ");
    let commands: Vec<&str> = found.iter().map(|step| step.command.as_str()).collect();
    assert_eq!(commands, ["a \\\n    b", "c"]);
    assert_eq!(found[1].prints, ["d", "e"]);
    let text = "# x\n## One\n\nwords\n\n    a\n    b\n\nmore\n\n    $ c\n    d\n\n## Two\n    e\n";
    let found = blocks(text, "One");
    let commands: Vec<&str> = found.iter().map(|step| step.command.as_str()).collect();
    assert_eq!(commands, ["a", "b", "c"]);
    assert_eq!(found[2].prints, ["d"]);
}
