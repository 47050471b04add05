//! Numbered transactions, in a dialogue with a client of a database: each is sent when the one before is acknowledged.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::party::{Desk, Mark, Verdict};

/// Rows that are kept.
const ROWS: u64 = 500;

/// Makes the tables.
pub(super) const SCHEMA: &str = "CREATE TABLE log (n INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE purse (id INTEGER PRIMARY KEY, money BIGINT NOT NULL);
INSERT INTO purse VALUES (0,0),(1,0),(2,0),(3,0),(4,0),(5,0),(6,0),(7,0);";

/// Lets the client tell everything that `whole` looks at.
pub(super) const EVERYTHING: &str = "SELECT n, body FROM log ORDER BY n;
SELECT 'sum', sum(money) FROM purse;";

/// What row n holds.
fn body(n: u64) -> String {
    format!("{n}-").repeat(1 + (n * 37 % 400) as usize)
}

/// Transaction n: a row comes, one goes, and money changes hands.
fn transaction(n: u64) -> String {
    let (from, to) = (n % 8, (n * 5 + 3) % 8);
    format!(
        "BEGIN; INSERT INTO log VALUES ({n}, '{}');
UPDATE purse SET money = money - {n} WHERE id = {from};
UPDATE purse SET money = money + {n} WHERE id = {to};
DELETE FROM log WHERE n + {ROWS} <= {n}; COMMIT; SELECT {n};\n",
        body(n)
    )
}

/// Checks what a client has told: whole transactions, all up to a last one that a crash may have left.
pub(super) fn whole(told: &str, mark: Mark) -> Verdict {
    let mut lines = told.lines().rev();
    let sum = lines.next();
    if sum != Some("sum|0") {
        return Err(format!("half a transaction: {sum:?}"));
    }
    let mut rows: Vec<u64> = Vec::new();
    for line in lines {
        let (n, text) = line.split_once('|').ok_or("no row")?;
        let n = n.parse().map_err(|_| format!("no number: {n}"))?;
        if text != body(n) {
            return Err(format!("row {n} holds {text}"));
        }
        rows.push(n);
    }
    let last = rows.first().copied().unwrap_or_default();
    mark.allows(last)?;
    let expected: Vec<u64> = (1..=last).rev().take(ROWS as usize).collect();
    match rows == expected {
        true => Ok(()),
        false => Err(format!("a row is missing before {last}")),
    }
}

/// A client that reads statements and prints answers.
pub(super) struct Dialogue<'a> {
    desk: &'a Desk,
    command: Command,
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    last: u64,
}

impl<'a> Dialogue<'a> {
    pub(super) fn start(desk: &'a Desk, mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        let mut child = desk.group.spawn(&mut command)?;
        let input = child.stdin.take().ok_or("no input")?;
        let output = child.stdout.take().ok_or("no output")?;
        let answers = BufReader::new(output).lines();
        let mut dialogue = Self {
            desk,
            command,
            child,
            input,
            answers,
            last: 0,
        };
        let last = dialogue.ask("SELECT coalesce(max(n), 0) FROM log;\n")?;
        dialogue.last = last.parse().map_err(|_| format!("no number: {last}"))?;
        desk.begin_at(dialogue.last);
        Ok(dialogue)
    }

    fn ask(&mut self, statements: &str) -> Result<String, String> {
        let sent = self.input.write_all(statements.as_bytes());
        sent.map_err(|e| format!("the client has gone: {e}"))?;
        match self.answers.next() {
            Some(answer) => answer.map_err(|e| e.to_string()),
            None => Err("the client has ended".to_owned()),
        }
    }

    /// One transaction more.
    pub(super) fn next(&mut self) -> Verdict {
        let n = self.last + 1;
        self.desk.issue(n);
        let answer = self.ask(&transaction(n))?;
        if answer != n.to_string() {
            return Err(format!("{n} was answered with {answer}"));
        }
        self.desk.acknowledge(n);
        self.last = n;
        Ok(())
    }

    pub(super) fn end(self) -> Verdict {
        drop((self.input, self.answers));
        self.desk.group.ended(&self.command, self.child).map(drop)
    }
}
