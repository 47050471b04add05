//! Changing one value of a configuration file, and nothing else in it: comments, order and blanks stay.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

use super::config;
use crate::error::{Error, Result};
use crate::set::Code;

/// A configuration file and the text that it is to have.
#[derive(Debug)]
pub(super) struct Edit {
    path: PathBuf,
    text: String,
    line: String,
}

impl Edit {
    /// Gives a parameter of `[params]`, or with a name such as `m1.site` one of a member, another value; nothing is written yet.
    ///
    /// # Errors
    /// [`Code::Config`] when the file, or what it would become, cannot be understood; the system's error.
    pub(super) fn of_param(path: &Path, name: &str, value: &str) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|cause| {
            Error::io(
                format!("cannot read the configuration {}", path.display()),
                cause,
            )
        })?;
        let text = with_param(&text, name, value).map_err(|says| {
            let says = format!("{}: {says}", path.display());
            Error::new(Code::Config, says).with_hint("write the value into the file by hand")
        })?;
        config::parse(&text, path)?;
        let key = name.rsplit('.').next().unwrap_or(name);
        Ok(Self {
            path: path.to_owned(),
            text,
            line: format!("{key} = {}", written(value).to_string().trim()),
        })
    }

    /// The line that is written, and the file.
    pub(super) fn told(&self) -> String {
        format!("`{}` in {}", self.line, self.path.display())
    }

    /// Puts the new text in place of the old, at once and durably.
    ///
    /// # Errors
    /// The system's error; the file is as it was then.
    pub(super) fn write(&self) -> Result<()> {
        replace(&self.path, self.text.as_bytes()).map_err(|cause| {
            let says = format!("cannot write the configuration {}", self.path.display());
            Error::io(says, cause)
        })
    }
}

/// A value as the file holds it.
fn written(value: &str) -> Value {
    match value.parse::<i64>() {
        Ok(number) => number.into(),
        Err(_) => value.into(),
    }
}

/// The text with another value of a parameter.
pub(super) fn with_param(
    text: &str,
    name: &str,
    value: &str,
) -> std::result::Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|e| format!("{e}"))?;
    let (params, name) = match name.rsplit_once('.') {
        Some((member, name)) => (member_of(&mut document, member)?, name),
        None => (params_of(&mut document)?, name),
    };
    let mut new = written(value);
    match params.get_mut(name).and_then(Item::as_value_mut) {
        Some(old) => {
            // The comment behind the value.
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        None => {
            params.insert(name, Item::Value(new));
        }
    }
    Ok(document.to_string())
}

/// The table of the unit's parameters; a new one where there is none.
fn params_of(document: &mut DocumentMut) -> std::result::Result<&mut dyn TableLike, String> {
    let params = document
        .entry("params")
        .or_insert_with(|| Item::Table(Table::new()));
    let params = params.as_table_like_mut();
    params.ok_or_else(|| "params is not a table of parameters".to_owned())
}

/// The table of a member.
fn member_of<'a>(
    document: &'a mut DocumentMut,
    name: &str,
) -> std::result::Result<&'a mut dyn TableLike, String> {
    let members = document.get_mut("member");
    let members = members.and_then(Item::as_array_of_tables_mut);
    let is_it = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(name);
    let found = members.and_then(|members| members.iter_mut().find(is_it));
    let found = found.map(|table| table as &mut dyn TableLike);
    found.ok_or_else(|| format!("there is no [[member]] {name}"))
}

/// Replaces a file by one of the same owner and mode; a link to it stays one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let new = format!(".{}.{}.new", name.to_string_lossy(), std::process::id());
    let new = dir.join(new);
    let moved = write_like(&new, &path, bytes).and_then(|()| fs::rename(&new, &path));
    if moved.is_err() {
        // Nothing has been replaced; what was to come is of no use.
        let _ = fs::remove_file(&new);
    }
    moved.and_then(|()| File::open(dir)?.sync_all())
}

/// Writes a new file with the owner and the mode of another.
fn write_like(new: &Path, old: &Path, bytes: &[u8]) -> io::Result<()> {
    let like = fs::metadata(old)?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(bytes)?;
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(like.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const MEMBERS: &str = "# the payroll\nunit = \"dsa1\"   # our name\n\n[[member]]\n\
                           name = \"m1\"\npath = \"/a\" # on the first disk\n";

    #[test]
    fn comments_and_order_stay() {
        let text = format!(
            "{MEMBERS}\n[params]\n# as the manual has it\nmax_copies = 2 # few\npriority=3\n\n[mount]\nro = true\n"
        );
        let new = with_param(&text, "max_copies", "7").expect("a table");
        assert_eq!(new, text.replace("max_copies = 2 #", "max_copies = 7 #"));
        let new = with_param(&text, "default_detach_policy", "none").expect("a table");
        let added = "priority=3\ndefault_detach_policy = \"none\"\n";
        assert_eq!(new, text.replace("priority=3\n", added));
    }

    #[test]
    fn a_table_that_is_not_there_is_added_at_the_end() {
        let new = with_param(MEMBERS, "max_copies", "0").expect("no table");
        assert_eq!(new, format!("{MEMBERS}\n[params]\nmax_copies = 0\n"));
        let config = config::parse(&new, Path::new("/etc/shadowset/dsa1.toml")).expect("valid");
        assert_eq!(config.params.len(), 1);
        let inline = format!("params = {{ priority = 1 }}\n{MEMBERS}");
        let new = with_param(&inline, "priority", "2").expect("an inline table");
        assert_eq!(new, inline.replace("priority = 1", "priority = 2"));
        assert!(with_param("params = 3\n", "priority", "2").is_err());
    }

    #[test]
    fn a_parameter_of_a_member_goes_into_its_table() {
        let two =
            format!("{MEMBERS}read_cost = 1 # near\n\n[[member]]\nname = \"m.2\"\npath = \"/b\"\n");
        let new = with_param(&two, "m1.read_cost", "5").expect("there");
        assert_eq!(new, two.replace("read_cost = 1", "read_cost = 5"));
        let new = with_param(&two, "m.2.site", "3").expect("there");
        assert_eq!(new, format!("{two}site = 3\n"));
        let says = with_param(&two, "m3.site", "3").expect_err("not there");
        assert_eq!(says, "there is no [[member]] m3");
    }

    #[test]
    fn a_text_that_would_not_be_understood_is_not_written() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("dsa1.toml");
        for (text, name, says) in [
            (MEMBERS, "copies", "there is no parameter copies"),
            ("unit = 3\n", "max_copies", "line 1"),
            ("unit = \n", "max_copies", "dsa1.toml: "),
        ] {
            fs::write(&path, text).expect("written");
            let error = Edit::of_param(&path, name, "1").expect_err(text);
            assert_eq!(error.code(), Code::Config, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).expect("there"), "unit = \n");
    }

    #[test]
    fn owner_mode_and_links_of_the_file_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (real, link) = (dir.path().join("real.toml"), dir.path().join("dsa1.toml"));
        fs::write(&real, MEMBERS).expect("written");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("mode");
        symlink(&real, &link).expect("link");
        let edit = Edit::of_param(&link, "priority", "9").expect("valid");
        let told = format!("`priority = 9` in {}", link.display());
        assert_eq!(edit.told(), told);
        edit.write().expect("written");
        let text = fs::read_to_string(&real).expect("there");
        assert!(text.ends_with("[params]\npriority = 9\n"), "{text}");
        let meta = fs::symlink_metadata(&link).expect("there");
        assert!(meta.is_symlink());
        let meta = fs::metadata(&real).expect("there");
        assert_eq!(meta.mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 2);
    }
}
