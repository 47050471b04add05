//! Setting a parameter: the value is checked, is in force at once, and is told.

use super::params::{OfMember, Param, rate_of_operation};
use super::record::record_set;
use super::run::{Runner, now};
use crate::set::{Answer, Command, Event, Refusal, Ticket, set_answer};

/// The command that sets a parameter of a member or an operation, where the name is one.
fn of_object(name: &str, value: &str) -> Result<Option<Command>, Refusal> {
    if let Some((op, rate)) = rate_of_operation(name, value)? {
        return Ok(Some(Command::Limit { op, rate }));
    }
    let Some((member, param)) = OfMember::find(name)? else {
        return Ok(None);
    };
    let tuning = param.tuning(name, value)?;
    let member = member.to_owned();
    Ok(Some(Command::Tune { member, tuning }))
}

impl Runner {
    /// Answers `set`; a value that is refused changes nothing, and a dry run neither.
    pub(super) fn set_param(&mut self, ticket: Ticket, name: &str, value: &str, dry_run: bool) {
        let answer = match of_object(name, value) {
            Ok(Some(command)) => return self.give(ticket, command, dry_run),
            Ok(None) => self.tune(name, value, dry_run),
            Err(refusal) => Err(refusal),
        };
        if !dry_run {
            self.publish_state();
        }
        self.reply(&ticket, answer);
    }

    fn tune(&mut self, name: &str, value: &str, dry_run: bool) -> Result<Answer, Refusal> {
        let param = Param::find(name)?;
        let value = param.value(value)?;
        if dry_run {
            return Ok(set_answer(name, &param.spec().write(value)));
        }
        let old = self.params.set(param, value);
        let [value_is, value_was] = [value, old].map(|value| param.spec().write(value));
        if value != old {
            record_set(&self.board, now(), name, &value_was, &value_is);
            self.follow(param);
        }
        Ok(Answer {
            text: format!("{name} is {value_is}"),
            facts: vec![
                ("parameter", name.to_owned()),
                ("value", value_is),
                ("old", value_was),
            ],
        })
    }

    /// Tells the set what is limited now.
    fn limit(&mut self) {
        let limits = self.params.limits(self.begun.elapsed());
        self.delayed = limits.delayed;
        self.feed(Event::Limits(limits));
    }

    /// Lets merges and copies of the mount begin when they have waited long enough.
    pub(super) fn end_delay(&mut self) {
        if self.delayed && !self.params.limits(self.begun.elapsed()).delayed {
            self.limit();
        }
    }

    /// What follows from another value; most parameters are read when they are needed.
    fn follow(&mut self, param: Param) {
        match param {
            Param::MaxCopies
            | Param::Priority
            | Param::RecDly
            | Param::MinMembers
            | Param::HbmmResetThreshold => {
                self.limit();
            }
            Param::WbmMsgMode | Param::WbmMsgInt | Param::WbmMsgUpper | Param::WbmMsgLower => {
                self.pipeline.follow_messages();
            }
            Param::CopyDepth => self.copier.follow_depth(),
            Param::CommandTimeout
            | Param::CopyRateMin
            | Param::CopyRateMax
            | Param::HbmmRtc
            | Param::MemberTimeout
            | Param::Mvtimeout
            | Param::AutoReturn
            | Param::MaxLatency
            | Param::DefaultDetachPolicy
            | Param::ReadPolicy
            | Param::SiteId
            | Param::WbmOpcomLvl => {}
        }
    }
}
