//! Which unit is mounted on a directory, read from the text of `/proc/self/mountinfo`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The unit whose mount is the topmost on `dir`; `None` when no shadow set is mounted there.
pub(crate) fn unit_at(table: &[u8], dir: &OsStr) -> Option<OsString> {
    let topmost = table.split(|&b| b == b'\n').rev().find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        (unescape(fields.get(4)?) == dir.as_bytes()).then_some(fields)
    })?;
    // Optional fields end with a lone hyphen; type and source follow it.
    let hyphen = topmost.iter().position(|field| *field == b"-")?;
    if topmost.get(hyphen + 1)? != b"fuse.shadowset" {
        return None;
    }
    Some(OsString::from_vec(unescape(topmost.get(hyphen + 2)?)))
}

/// Whether a unit is mounted anywhere.
pub(crate) fn has_unit(table: &[u8], unit: &OsStr) -> bool {
    table.split(|&b| b == b'\n').any(|line| {
        let mut fields = line
            .split(|&b| b == b' ')
            .skip_while(|field| *field != b"-");
        let mut behind = || fields.next().unwrap_or_default();
        behind();
        behind() == b"fuse.shadowset" && unescape(behind()) == unit.as_bytes()
    })
}

/// Undoes the kernel's `\040` for blank, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| behind.get(..3).and_then(octal))
            .flatten();
        plain.push(octal.unwrap_or(first));
        rest = if octal.is_some() {
            &behind[3..]
        } else {
            behind
        };
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 28 0:21 / /proc rw,relatime shared:5 - proc proc rw\n\
        90 28 0:50 / /srv/a\\040b rw,nosuid shared:9 master:2 - fuse.shadowset dsa1 rw\n\
        91 28 0:51 / /srv/c rw,nosuid - fuse.shadowset dsa2 rw\n\
        92 91 0:52 / /srv/c rw - tmpfs tmpfs rw\n";

    fn unit(dir: &str) -> Option<String> {
        unit_at(TABLE, OsStr::new(dir)).and_then(|unit| unit.into_string().ok())
    }

    #[test]
    fn finds_the_unit_whatever_the_path_holds() {
        assert_eq!(unit("/srv/a b").as_deref(), Some("dsa1"));
    }

    #[test]
    fn the_topmost_mount_counts_and_other_types_do_not() {
        assert_eq!(unit("/srv/c"), None);
        assert_eq!(unit("/proc"), None);
        assert_eq!(unit("/srv"), None);
    }

    #[test]
    fn a_unit_is_found_wherever_it_is_mounted() {
        let has = |name: &str| has_unit(TABLE, OsStr::new(name));
        assert!(has("dsa1") && has("dsa2"));
        assert!(!has("tmpfs") && !has("dsa3"));
    }

    #[test]
    fn a_broken_escape_is_kept_as_it_is() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\134\\777"), b"\\\\777");
    }
}
