//! Who may use the files of a mount: words of the configuration and of `mount -o` to checked values.

use std::fs;

use serde::Deserialize;

use crate::fuse::Rights;

/// Where groups have names.
const GROUPS: &str = "/etc/group";

/// What is said of rights; what is not said stays as it is without.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Said {
    pub(super) control_gid: Option<Group>,
    pub(super) control_mode: Option<String>,
    pub(super) unit_gid: Option<Group>,
    pub(super) unit_mode: Option<String>,
}

/// A group by its number or its name.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(untagged)]
pub(super) enum Group {
    /// Its number.
    Number(u32),
    /// Its name.
    Name(String),
}

impl Said {
    /// Takes one option; `None` when it is not about rights.
    pub(super) fn read(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        let (value, group) = (value.to_owned(), Group::of(value));
        match key {
            "control_gid" => self.control_gid = Some(group),
            "control_mode" => self.control_mode = Some(value),
            "unit_gid" => self.unit_gid = Some(group),
            "unit_mode" => self.unit_mode = Some(value),
            _ => return None,
        }
        // Each alone, so that the option at fault is the one that is named.
        Some(self.rights().map(drop).map_err(|(_, says)| says))
    }

    /// What this says, and where it says nothing what `other` says.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            control_gid: self.control_gid.or(other.control_gid),
            control_mode: self.control_mode.or(other.control_mode),
            unit_gid: self.unit_gid.or(other.unit_gid),
            unit_mode: self.unit_mode.or(other.unit_mode),
        }
    }

    /// The checked values, or the option at fault and what is wrong with it.
    pub(super) fn rights(&self) -> Result<Rights, (&'static str, String)> {
        let group = |key, said: &Option<Group>| {
            let number = said.as_ref().map(Group::number).transpose();
            number.map_err(|says| (key, says))
        };
        let mode = |key, said: &Option<String>, most| {
            let read = said.as_deref().map(|text| mode(text, most)).transpose();
            let mode = read.map(|mode| mode.unwrap_or(0o600));
            mode.map_err(|says| (key, says))
        };
        Ok(Rights {
            control_gid: group("control_gid", &self.control_gid)?,
            // Who is not in the group gives no commands.
            control_mode: mode("control_mode", &self.control_mode, 0o660)?,
            unit_gid: group("unit_gid", &self.unit_gid)?,
            unit_mode: mode("unit_mode", &self.unit_mode, 0o666)?,
        })
    }
}

impl Group {
    fn of(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Number)
    }

    fn number(&self) -> Result<u32, String> {
        let name = match self {
            Self::Number(number) => return Ok(*number),
            Self::Name(name) => name,
        };
        let groups = fs::read_to_string(GROUPS).map_err(|e| format!("{GROUPS}: {e}"))?;
        find(&groups, name).ok_or_else(|| format!("there is no group {name} in {GROUPS}"))
    }
}

fn find(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    let mut fields = lines.find(|fields| fields.clone().next() == Some(name))?;
    fields.nth(2)?.parse().ok()
}

/// Octal permissions: the owner reads and writes, and no more bits than `most`.
fn mode(text: &str, most: u16) -> Result<u16, String> {
    let mode = u16::from_str_radix(text, 8).ok();
    let fits = |mode: &u16| mode & 0o600 == 0o600 && mode & !most == 0;
    mode.filter(fits)
        .ok_or_else(|| format!("takes an octal mode from 0600 to 0{most:o}, not {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Rights, String> {
        let mut said = Said::default();
        for (key, value) in options {
            said.read(key, value).expect("about rights")?;
        }
        said.rights().map_err(|(_, says)| says)
    }

    #[test]
    fn nothing_said_is_the_owner_alone() {
        assert_eq!(Said::default().rights(), Ok(Rights::default()));
        assert_eq!(Rights::default().control_mode, 0o600);
        assert!(Said::default().read("members", "/a").is_none());
    }

    #[test]
    fn groups_and_modes_are_read() {
        let rights = read(&[
            ("control_gid", "root"),
            ("control_mode", "0660"),
            ("unit_gid", "6"),
            ("unit_mode", "640"),
        ]);
        let expected = Rights {
            control_gid: Some(0),
            control_mode: 0o660,
            unit_gid: Some(6),
            unit_mode: 0o640,
        };
        assert_eq!(rights, Ok(expected));
    }

    #[test]
    fn what_is_too_wide_or_nothing_is_refused() {
        for (key, value, says) in [
            ("control_mode", "0666", "from 0600 to 0660"),
            ("control_mode", "0060", "from 0600"),
            ("unit_mode", "0777", "from 0600 to 0666"),
            ("unit_mode", "rw", "not rw"),
            (
                "unit_gid",
                "no-such-group-here",
                "no group no-such-group-here",
            ),
        ] {
            let error = read(&[(key, value)]).expect_err(value);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_mount_stands_over_the_configuration() {
        let mut mount = Said::default();
        mount
            .read("unit_mode", "0660")
            .expect("known")
            .expect("valid");
        let mut file = Said::default();
        for (key, value) in [("unit_mode", "0640"), ("unit_gid", "7")] {
            file.read(key, value).expect("known").expect("valid");
        }
        let rights = mount.or(file).rights().expect("valid");
        assert_eq!((rights.unit_mode, rights.unit_gid), (0o660, Some(7)));
    }

    #[test]
    fn a_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\ndisk:x:6:a,b\ndisks:x:7:\n";
        assert_eq!((find(groups, "disk"), find(groups, "dis")), (Some(6), None));
    }
}
