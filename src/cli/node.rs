//! What holds for all units of this node: `node.toml` beside their configurations.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::config::Source;
use super::place;
use crate::error::{Error, Result};
use crate::server::params;
use crate::set::UNLIMITED;

/// Units that a node serves unless its configuration says otherwise (SHADOW_MAX_UNIT).
const UNITS_MAX_DEFAULT: usize = 500;
/// What `max_units` takes.
const UNITS_MAX_RANGE: std::ops::RangeInclusive<usize> = 1..=10_000;

/// What helps with any mistake in the file.
const HINT: &str =
    "as in `max_units = 500` and `copy_rate_max = \"100M\"`; shadowset.toml(5) describes both";

/// What holds for all units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Node {
    /// The most units that are served at once.
    pub(super) units_max: usize,
    /// The most that all their copies read together, in bytes per second; none for no limit.
    pub(super) copy_rate_max: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    max_units: Option<Spanned<usize>>,
    copy_rate_max: Option<Spanned<toml::Value>>,
}

impl Node {
    /// Reads the configuration of the node.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub(super) fn load() -> Result<Self> {
        let path = place::config_dir().join(place::NODE_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => String::new(),
            Err(cause) => {
                let says = format!("cannot read the configuration {}", path.display());
                return Err(Error::io(says, cause));
            }
        };
        Self::parse(&text, &path)
    }

    /// Reads its text.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self> {
        let place = Source {
            text,
            path,
            hint: HINT,
        };
        let file: File = place.read()?;
        let rate = file.copy_rate_max.map(|rate| read_rate(&place, &rate));
        Ok(Self {
            units_max: units_max(&place, file.max_units)?,
            copy_rate_max: rate.transpose()?.filter(|rate| *rate != UNLIMITED),
        })
    }
}

/// What `max_units` takes, as the manual page has it.
#[cfg(test)]
pub(super) fn units_row() -> String {
    let (least, most) = (UNITS_MAX_RANGE.start(), UNITS_MAX_RANGE.end());
    format!("max_units Pq {least} to {most}, default {UNITS_MAX_DEFAULT}")
}

fn units_max(place: &Source<'_>, units: Option<Spanned<usize>>) -> Result<usize> {
    let Some(units) = units else {
        return Ok(UNITS_MAX_DEFAULT);
    };
    let (least, most) = (UNITS_MAX_RANGE.start(), UNITS_MAX_RANGE.end());
    match units.get_ref() {
        n if UNITS_MAX_RANGE.contains(n) => Ok(*n),
        n => Err(place.wrong(
            units.span(),
            &format!("takes {least} to {most} units, not {n}"),
        )),
    }
}

fn read_rate(place: &Source<'_>, rate: &Spanned<toml::Value>) -> Result<u64> {
    let text = match rate.get_ref() {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    params::read_rate(&text).map_err(|wrong| place.wrong(rate.span(), &wrong.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::Code;

    #[test]
    fn a_node_has_a_limit_of_units_and_of_the_rate_of_copies() {
        let read = |text| Node::parse(text, Path::new("/etc/shadowset/node.toml"));
        let units = |text| read(text).expect("valid").units_max;
        assert_eq!(units(""), UNITS_MAX_DEFAULT);
        assert_eq!(units("# few\nmax_units = 2\n"), 2);
        let rate = |text| read(text).expect("valid").copy_rate_max;
        assert_eq!(rate(""), None);
        assert_eq!(rate("copy_rate_max = \"max\""), None);
        assert_eq!(rate("copy_rate_max = \"2M\""), Some(2 << 20));
        assert_eq!(rate("max_units = 9\ncopy_rate_max = 1000"), Some(1000));
        for (text, says) in [
            (
                "max_units = 0",
                "line 1, column 13: max_units: takes 1 to 10000 units, not 0",
            ),
            (
                "\nunits = 3",
                "line 2, column 1: units: unknown field `units`",
            ),
            (
                "copy_rate_max = 0",
                "copy_rate_max: takes bytes per second, with k, M or G, or max, not 0",
            ),
            (
                "copy_rate_max = \"fast\"",
                "line 1, column 17: copy_rate_max: ",
            ),
            ("max_units = -1", "line 1, column 13: max_units: "),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!((error.code(), error.hint()), (Code::Config, HINT));
        }
    }
}
