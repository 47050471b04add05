//! Setting a parameter: the value is checked, is in force at once, and is told.

use super::params::Param;
use super::record::record_set;
use super::run::{Runner, now};
use crate::set::{Answer, Event, Refusal, Ticket};

impl Runner {
    /// Answers `set`; a value that is refused changes nothing.
    pub(super) fn set_param(&mut self, ticket: &Ticket, name: &str, value: &str) {
        let answer = self.tune(name, value);
        self.publish_state();
        self.reply(ticket, answer);
    }

    fn tune(&mut self, name: &str, value: &str) -> Result<Answer, Refusal> {
        let param = Param::find(name)?;
        let value = param.value(value)?;
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

    /// What follows from another value; most parameters are read when they are needed.
    fn follow(&mut self, param: Param) {
        match param {
            Param::MaxCopies | Param::Priority | Param::HbmmResetThreshold => {
                self.feed(Event::Limits(self.params.limits()));
            }
            Param::CommandTimeout | Param::HbmmRtc | Param::DefaultDetachPolicy => {}
        }
    }
}
