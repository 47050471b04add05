//! `params`: the parameters of a running unit, and keeping them in its configuration.

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use serde_json::{Map, Value, json};

use super::args::{ParamArgs, ParamSetArgs, ParamsVerb, UnitArgs};
use super::bitmap::raw;
use super::change::{self, Command};
use super::output::{Out, table};
use super::persist::Edit;
use super::wait::no_such_operation;
use super::{config, place, system};
use crate::error::{Error, Result};
use crate::server::params::{OfMember, Param};
use crate::set::Code;

/// `params`.
pub(super) fn run(verb: &ParamsVerb, out: Out) -> Result<u8> {
    match verb {
        ParamsVerb::List(args) => list(args, out),
        ParamsVerb::Get(args) => get(args, out),
        ParamsVerb::Set(args) => set(args, out),
    }
}

/// Any word, so that the server judges it; the names of the table are for completions and help.
#[derive(Clone, Debug)]
pub(super) struct AnyParam;

impl TypedValueParser for AnyParam {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> std::result::Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let names = Param::ALL
            .iter()
            .map(|param| PossibleValue::new(param.name()));
        Some(Box::new(names))
    }
}

fn list(args: &UnitArgs, out: Out) -> Result<u8> {
    let text = place::tree(&args.unit)?.read("status.json")?;
    let mut values = match raw(&text, "params") {
        Value::Object(values) => values,
        _ => Map::new(),
    };
    let members = raw(&text, "members");
    for member in members.as_array().into_iter().flatten() {
        let name = member["name"].as_str().unwrap_or_default();
        values.extend(of_member(&members, name));
    }
    if out.json {
        out.value(&Value::Object(values))?;
    } else {
        out.text(&rows(&values))?;
    }
    Ok(0)
}

/// Values of the server, beside what this program knows of the parameters.
fn rows(values: &Map<String, Value>) -> String {
    let head = ["NAME", "VALUE", "DEFAULT", "TAKES"];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for (name, value) in values {
        let spec = Param::from_name(name).map(Param::spec);
        let of_unit = spec.map(|spec| (spec.write(spec.default), spec.takes()));
        let known = of_unit.or_else(|| {
            let (_, param) = OfMember::find(name).ok().flatten()?;
            Some(config::of_member(param))
        });
        let (default, takes) = known.unwrap_or_else(|| ("-".to_owned(), "-".to_owned()));
        cells.push(vec![name.clone(), shown(value), default, takes]);
    }
    table(&cells)
}

fn shown(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn get(args: &ParamArgs, out: Out) -> Result<u8> {
    let tree = place::tree(&args.unit)?;
    if let Some(op) = operation_of(&args.name) {
        let rate = tree.read(&format!("operations/{op}/rate_max"));
        let rate = rate.map_err(|error| match error.code() {
            Code::NoSuchFile => no_such_operation(op, &tree.named()),
            _ => error,
        })?;
        let rate = rate.trim_end();
        let value = rate
            .parse::<u64>()
            .map_or_else(|_| rate.into(), Value::from);
        out.either(&json!({ "parameter": args.name, "value": value }), rate)?;
        return Ok(0);
    }
    let text = tree.read("status.json")?;
    let values = match OfMember::find(&args.name)? {
        None => raw(&text, "params"),
        Some((member, _)) => Value::Object(of_member(&raw(&text, "members"), member)),
    };
    let value = values.get(&args.name).ok_or_else(|| {
        let says = format!("there is no parameter {}", args.name);
        Error::new(Code::NoSuchParameter, says)
            .with_hint(format!("`shadowset params list {}` lists them", args.unit))
    })?;
    out.either(
        &json!({ "parameter": args.name, "value": value }),
        &shown(value),
    )?;
    Ok(0)
}

/// The number in `7.rate_max`.
fn operation_of(name: &str) -> Option<u64> {
    name.strip_suffix(".rate_max")?.parse().ok()
}

/// The parameters of a member, by the names that `set` takes.
fn of_member(members: &Value, name: &str) -> Map<String, Value> {
    let mut members = members.as_array().into_iter().flatten();
    let member = members.find(|member| member["name"] == name);
    let values = member.into_iter().flat_map(|member| {
        ["read_cost", "site", "timeout"].map(|key| (format!("{name}.{key}"), member[key].clone()))
    });
    values.collect()
}

fn set(args: &ParamSetArgs, out: Out) -> Result<u8> {
    let command = Command::new("set").word(&args.name)?.word(&args.value)?;
    let command = command.flag("dry-run", args.dry_run);
    let running = place::running(&args.unit)?;
    // Everything that can be refused is, before anything has changed.
    let edit = match args.persist {
        true => Some(edit(&running.unit, args)?),
        false => None,
    };
    let mut answer = place::tree(&args.unit)?.command(&command.text)?;
    if let Some(edit) = edit {
        if !args.dry_run {
            edit.write().map_err(|error| {
                let says = format!("{} is set, but not kept: {error}", args.name);
                Error::new(error.code(), says).with_hint(error.hint())
            })?;
        }
        let key = match args.dry_run {
            true => "would_write",
            false => "written",
        };
        answer.values.push((key.to_owned(), edit.told()));
    }
    change::show(&answer, out)
}

/// What the configuration of a mounted unit becomes.
fn edit(unit: &str, args: &ParamSetArgs) -> Result<Edit> {
    match OfMember::find(&args.name)? {
        Some((_, param)) => param.tuning(&args.name, &args.value).map(|_| ())?,
        None => Param::find(&args.name)?.value(&args.value).map(|_| ())?,
    }
    let path = system::runtime()?.config(unit)?.ok_or_else(|| {
        let says = format!(
            "{unit} is mounted without a configuration to keep {} in",
            args.name
        );
        Error::new(Code::NotSupported, says).with_hint("leave out --persist")
    })?;
    Edit::of_param(&path, &args.name, &args.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_listed_with_what_they_take() {
        let values = json!({ "default_detach_policy": "none", "m1.site": 3, "max_copies": 0,
            "newer": 1 });
        let text = rows(values.as_object().expect("an object"));
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["NAME", "VALUE", "DEFAULT", "TAKES"]);
        assert_eq!(
            lines[1][..3],
            ["default_detach_policy", "none", "minicopy=optional"]
        );
        assert_eq!(lines[2], ["m1.site", "3", "0", "0", "to", "255"]);
        assert_eq!(
            lines[3],
            ["max_copies", "0", "4", "0", "to", "200", "copies"]
        );
        assert_eq!(lines[4], ["newer", "1", "-", "-"]);
    }
}
