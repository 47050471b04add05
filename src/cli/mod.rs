//! Face 3: the command line, a thin client of the control tree.
//!
//! A verb reads its arguments, asks the tree (or starts a server) and shows the answer. It decides
//! nothing that the server decides: refusals come from there, with their code, sentence and hint.

mod args;
mod backup;
mod bitmap;
mod change;
mod complete;
mod config;
mod create;
mod demo;
mod events;
mod examine;
mod expel;
mod freeze;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod hints;
mod line;
mod list;
mod log;
mod loops;
mod members;
mod model;
mod mount;
mod mount_options;
mod node;
mod op;
mod output;
#[cfg(test)]
#[path = "page/tests.rs"]
mod page;
mod params;
mod persist;
mod place;
mod remount;
mod rights;
mod size;
mod stall;
mod status;
mod stop;
mod system;
mod tree;
mod usage;
mod verify;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use serde_json::json;

use self::args::{Args, CompletionsArgs, Verb};
use self::output::Out;
use crate::error::Result;

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    // No verb, so that it stands in no help and no completion.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == freeze::FREEZER)
    {
        return freeze::freezer::main();
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(answer) => return not_run(&answer),
    };
    let out = Out::of_process(args.json);
    let code = match run(&args.verb, out) {
        Ok(code) => ExitCode::from(code),
        Err(error) if output::reader_has_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::report(&error, args.json);
            ExitCode::from(error.exit_code())
        }
    };
    log::finish();
    code
}

/// Shows help or version, or what is wrong with the line.
fn not_run(answer: &clap::Error) -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    match usage::error(answer, &words) {
        Some(error) => output::report(&error, usage::wants_json(&words)),
        // A reader that has gone is no failure.
        None => drop(answer.print()),
    }
    ExitCode::from(match answer.exit_code() {
        2 if is_mount(words.into_iter()) => mount::EXIT_USAGE,
        code => u8::try_from(code).unwrap_or(2),
    })
}

/// Whether a line that cannot be understood was meant as `mount`, whose codes are those of mount(8).
fn is_mount(words: impl Iterator<Item = OsString>) -> bool {
    let is_option = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
    words
        .skip(1)
        .find(|word| !is_option(word))
        .is_some_and(|verb| verb == "mount")
}

fn run(verb: &Verb, out: Out) -> Result<u8> {
    match verb {
        Verb::Create(args) => create::run(args, out),
        Verb::Mount(args) => mount::run(args, out),
        Verb::Stop(args) => stop::run(args, out),
        Verb::List => list::run(out),
        Verb::Status(args) => status::run(args, out),
        Verb::Show(args) => status::show(args, out),
        Verb::Examine(args) => examine::run(args, out),
        Verb::Detach(args) => change::detach(args, out),
        Verb::Backup(args) => backup::run(args, out),
        Verb::Attach(args) => change::attach(args, out),
        Verb::Release(args) => change::release(args, out),
        Verb::Expel(args) => expel::expel(args, out),
        Verb::Abort(args) => expel::abort(args, out),
        Verb::Merge(args) => change::merge(args, out),
        Verb::Verify(args) => verify::run(args, out),
        Verb::Resize(args) => change::resize(args, out),
        Verb::Stall(args) => stall::stall(args, out),
        Verb::Unstall(args) => stall::unstall(args, out),
        Verb::Bitmap(verb) => bitmap::run(verb, out),
        Verb::Op(verb) => op::run(verb, out),
        Verb::Params(verb) => params::run(verb, out),
        Verb::ResetCounters(args) => expel::reset(args, out),
        Verb::Wait(args) => wait::run(args, out),
        Verb::Events(args) => events::run(args, out),
        Verb::Loop(verb) => loops::run(verb, out),
        Verb::Demo(args) => demo::run(args, out),
        Verb::Completions(args) => completions(args, out),
        Verb::Complete(args) => complete::run(args, out),
    }
}

fn completions(args: &CompletionsArgs, out: Out) -> Result<u8> {
    let text = match complete::script(args.shell) {
        Some(script) => script.to_owned(),
        None => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Args::command(), "shadowset", &mut script);
            String::from_utf8_lossy(&script).into_owned()
        }
    };
    if out.json {
        out.value(&json!({ "shell": args.shell.to_string(), "script": text }))?;
    } else {
        out.text(&text)?;
    }
    Ok(0)
}
