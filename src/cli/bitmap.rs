//! `bitmap`: write bitmaps of detached members.

use serde_json::{Value, json};

use super::args::{BitmapArgs, BitmapDeleteArgs, BitmapVerb, UnitArgs};
use super::change::{self, Command};
use super::model::{Bitmap, Status};
use super::output::{Out, table};
use super::place;
use super::size::human;
use super::tree::{Tree, parse_status};
use crate::error::{Error, Result};
use crate::set::Code;

/// `bitmap`.
pub(super) fn run(verb: &BitmapVerb, out: Out) -> Result<u8> {
    match verb {
        BitmapVerb::List(args) => list(args, out),
        BitmapVerb::Show(args) => show(args, out),
        BitmapVerb::Extents(args) => extents(args, out),
        BitmapVerb::Delete(args) => delete(args, out),
    }
}

fn list(args: &UnitArgs, out: Out) -> Result<u8> {
    let text = place::tree(&args.unit)?.read("status.json")?;
    if out.json {
        out.value(&raw(&text, "bitmaps"))?;
    } else {
        out.text(&rows(&parse_status(&text)?))?;
    }
    Ok(0)
}

/// A part of `status.json` as the server wrote it.
pub(super) fn raw(text: &str, key: &str) -> Value {
    let mut whole: Value = serde_json::from_str(text).unwrap_or_default();
    whole.get_mut(key).map_or_else(|| json!([]), Value::take)
}

fn rows(status: &Status) -> String {
    let head = [
        "ID", "MEMBER", "STATE", "WRITTEN", "REGIONS", "BEYOND", "CREATED",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for b in &status.bitmaps {
        cells.push(vec![
            b.id.clone(),
            or_dash(b.member.clone()),
            b.state.clone(),
            or_dash(b.set_bytes.map(human)),
            or_dash(
                b.set_bits
                    .zip(b.bits)
                    .map(|(set, all)| format!("{set}/{all}")),
            ),
            or_dash(b.uncovered_bytes.map(human)),
            or_dash(b.created.clone()),
        ]);
    }
    table(&cells)
}

fn show(args: &BitmapArgs, out: Out) -> Result<u8> {
    let text = place::tree(&args.unit)?.read("status.json")?;
    let status = parse_status(&text)?;
    let bitmap = find(&status, &args.bitmap)?;
    if out.json {
        let all = raw(&text, "bitmaps");
        let is_it = |value: &&Value| value["id"] == bitmap.id;
        let one = all.as_array().and_then(|all| all.iter().find(is_it));
        out.value(one.unwrap_or(&Value::Null))?;
    } else {
        out.text(&lines(bitmap, status.region_blocks))?;
    }
    Ok(0)
}

fn lines(b: &Bitmap, region_blocks: Option<u64>) -> String {
    let number = |value: Option<u64>| value.map(|n| n.to_string());
    let facts = [
        ("id", Some(b.id.clone())),
        ("member", b.member.clone()),
        ("type", b.kind.clone()),
        ("state", Some(b.state.clone())),
        ("policy", b.policy.clone()),
        ("created", b.created.clone()),
        ("region_blocks", number(region_blocks)),
        ("bits", number(b.bits)),
        ("set_bits", number(b.set_bits)),
        ("set_bytes", number(b.set_bytes)),
        ("covered_bytes", number(b.covered_bytes)),
        ("uncovered_bytes", number(b.uncovered_bytes)),
    ];
    facts
        .iter()
        .filter_map(|(key, value)| Some(format!("{key} {}\n", value.as_ref()?)))
        .collect()
}

fn extents(args: &BitmapArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    let id = id_of(&tree, &args.bitmap)?;
    let name = if out.json { "extents.json" } else { "ranges" };
    out.text(&tree.read(&format!("bitmaps/{id}/{name}"))?)?;
    Ok(0)
}

fn delete(args: &BitmapDeleteArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.bitmap.unit)?;
    let id = id_of(&tree, &args.bitmap.bitmap)?;
    let command = Command::new("delete-bitmap").word(&id)?;
    let command = command.flag("dry-run", args.dry_run);
    change::show(&tree.command(&command.text)?, out)
}

fn id_of(tree: &Tree, bitmap: &str) -> Result<String> {
    find(&tree.status()?, bitmap).map(|b| b.id.clone())
}

fn find<'a>(status: &'a Status, bitmap: &str) -> Result<&'a Bitmap> {
    status.bitmap(bitmap).ok_or_else(|| {
        let unit = &status.unit;
        Error::new(Code::NoSuchBitmap, format!("{unit} has no bitmap {bitmap}"))
            .with_hint(format!("`shadowset bitmap list {unit}` lists the bitmaps"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::tests::{SAMPLE, sample};

    #[test]
    fn bitmaps_are_listed_and_shown() {
        let expected = "\
ID        MEMBER  STATE   WRITTEN   REGIONS     BEYOND  CREATED
0a0b0c0d  m2      active  19.2 MiB  310/16514   0 B     2026-11-25T12:41:00Z
00000007  m3      in-use  62.0 MiB  1000/16514  0 B     -
";
        assert_eq!(rows(&sample()), expected);
        let shown = lines(&sample().bitmaps[1], Some(127));
        assert!(shown.starts_with("id 00000007\nmember m3\ntype minicopy\nstate in-use\n"));
        assert!(shown.contains("\nset_bytes 65024000\n") && !shown.contains("created"));
    }

    #[test]
    fn a_bitmap_that_is_not_there_is_not_found() {
        let status = sample();
        assert_eq!(find(&status, "m2").expect("its bitmap").id, "0a0b0c0d");
        let error = find(&status, "m1").unwrap_err();
        assert_eq!((error.code(), error.exit_code()), (Code::NoSuchBitmap, 3));
        assert_eq!(error.to_string(), "dsa1 has no bitmap m1");
    }

    #[test]
    fn json_is_what_the_server_wrote() {
        assert_eq!(raw(SAMPLE, "bitmaps")[0]["id"], "0a0b0c0d");
        assert_eq!(raw(SAMPLE, "nothing"), json!([]));
    }
}
