//! `make install-files` and `make uninstall` in a root of their own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn make(goal: &str, root: &Path) {
    let built = Path::new(env!("CARGO_BIN_EXE_shadowset")).parent();
    let built = built.expect("the program is in a directory");
    let helper = built.join("mount-shadowset");
    assert!(
        helper.exists(),
        "the helper is not built: cargo build --workspace"
    );
    let output = Command::new("make")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // What the make that runs this test was told is not meant for this one.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .args(["-s", goal, "PREFIX=/opt/shadowset"])
        .arg(format!("DESTDIR={}", root.display()))
        .arg(format!("BUILT={}", built.display()))
        .output()
        .expect("make is there");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// All files and links below a directory, by their paths there.
fn files(root: &Path) -> BTreeSet<String> {
    let mut folders = vec![root.to_owned()];
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let below = path.strip_prefix(root).expect("below");
            if fs::symlink_metadata(&path).expect("there").is_dir() {
                folders.push(path);
            } else {
                found.insert(below.display().to_string());
            }
        }
    }
    found
}

/// Where the pages of the tree belong.
fn pages() -> impl Iterator<Item = String> {
    let man = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let names = fs::read_dir(man).expect("pages").map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("ASCII")
    });
    names.map(|name| {
        let section = name.rsplit('.').next().unwrap_or_default();
        format!("opt/shadowset/share/man/man{section}/{name}")
    })
}

/// Every link of the installed documents to a file has the file.
fn no_link_leads_nowhere(doc: &Path) {
    for page in files(doc).iter().filter(|name| name.ends_with(".md")) {
        let text = fs::read_to_string(doc.join(page)).expect("a page");
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http") && !link.starts_with('#')) {
            let file = link.split('#').next().unwrap_or_default();
            let at = doc.join(page).with_file_name(file);
            assert!(at.exists(), "{page}: nothing is at {link}");
        }
    }
}

#[test]
fn all_of_it_is_installed_and_nothing_stays() {
    let root = tempfile::tempdir().expect("a directory");
    let root = root.path();
    make("install-files", root);
    let found = files(root);
    let share = "opt/shadowset/share";
    let expected = [
        "opt/shadowset/bin/shadowset".to_owned(),
        "opt/shadowset/lib/systemd/system/shadowset@.service".to_owned(),
        "opt/shadowset/lib/systemd/system/shadowset-loop@.service".to_owned(),
        "opt/shadowset/lib/tmpfiles.d/shadowset.conf".to_owned(),
        "opt/shadowset/lib/udev/rules.d/90-shadowset.rules".to_owned(),
        format!("{share}/bash-completion/completions/shadowset"),
        format!("{share}/zsh/site-functions/_shadowset"),
        format!("{share}/fish/vendor_completions.d/shadowset.fish"),
        format!("{share}/doc/shadowset/README.md"),
        format!("{share}/doc/shadowset/CHANGELOG.md"),
        format!("{share}/doc/shadowset/examples/two-members.toml"),
        "sbin/mount.shadowset".to_owned(),
    ];
    for path in expected.into_iter().chain(pages()) {
        assert!(found.contains(&path), "{path} is not installed: {found:#?}");
    }
    for name in [
        "mount.fuse.shadowset",
        "umount.shadowset",
        "umount.fuse.shadowset",
    ] {
        let link = fs::read_link(root.join("sbin").join(name)).expect("a link");
        assert_eq!(link, PathBuf::from("mount.shadowset"));
        let page = format!("{share}/man/man8/{name}.8");
        assert!(found.contains(&page), "{page}");
    }
    for path in found.iter().filter(|path| !path.contains("sbin/")) {
        let mode = fs::metadata(root.join(path))
            .expect("a file")
            .permissions()
            .mode()
            & 0o777;
        assert!([0o644, 0o755].contains(&mode), "{path}: {mode:o}");
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        let in_lib = path.contains("/lib/");
        assert!(
            !(in_lib && text.contains("/usr/bin/shadowset")),
            "{path} calls another program"
        );
    }
    no_link_leads_nowhere(&root.join(share).join("doc/shadowset"));
    make("uninstall", root);
    assert_eq!(files(root), BTreeSet::new(), "left behind");
}
