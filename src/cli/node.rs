//! What holds for all units of this node: `node.toml` beside their configurations.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;

use super::config::Source;
use super::place;
use crate::error::{Error, Result};

/// Units that a node serves unless its configuration says otherwise (SHADOW_MAX_UNIT).
const UNITS_MAX_DEFAULT: usize = 500;
/// What `max_units` takes.
const UNITS_MAX_RANGE: std::ops::RangeInclusive<usize> = 1..=10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    max_units: Option<Spanned<usize>>,
}

/// The most units that are served at once.
///
/// # Errors
/// A file that cannot be read or understood.
pub(super) fn units_max() -> Result<usize> {
    let path = place::config_dir().join(place::NODE_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text, &path),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(UNITS_MAX_DEFAULT),
        Err(cause) => {
            let says = format!("cannot read the configuration {}", path.display());
            Err(Error::io(says, cause))
        }
    }
}

fn parse(text: &str, path: &Path) -> Result<usize> {
    let place = Source { text, path };
    let file: File = place.read()?;
    let Some(units) = file.max_units else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::Code;

    #[test]
    fn a_node_has_a_limit_of_units() {
        let read = |text| parse(text, Path::new("/etc/shadowset/node.toml"));
        assert_eq!(read("").expect("nothing is said"), UNITS_MAX_DEFAULT);
        assert_eq!(read("# few\nmax_units = 2\n").expect("valid"), 2);
        for (text, says) in [
            (
                "max_units = 0",
                "line 1, column 13: max_units: takes 1 to 10000 units, not 0",
            ),
            (
                "\nunits = 3",
                "line 2, column 1: units: unknown field `units`",
            ),
            ("max_units = -1", "line 1, column 13: max_units: "),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.code(), Code::Config);
        }
    }
}
