//! The parameters of a running unit: one table, and their values.
//!
//! The table is the only list of parameters: configuration, mount options, `.shadow/params/`, commands and
//! command line go by it, and so does every text that a value is read from or written as. A value
//! is one number, so that the data path and copies read it with one relaxed load. What follows from a
//! change is the control thread's business, not that of this module.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::fmt;
use std::time::Duration;

use crate::io::journal::{MessageMode, MessageSettings};
use crate::set::{Code, Limits, OpId, Policy, Refusal, Tuning, UNLIMITED, rate_text};

/// What the values of a parameter are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A whole number within a range, in a unit.
    Number {
        /// The smallest.
        least: u64,
        /// The largest.
        most: u64,
        /// What it counts, such as `seconds`; may be empty.
        unit: &'static str,
    },
    /// Bytes per second, with k, M or G for powers of 1024, or `max`: no limit.
    Rate,
    /// A word of a list; its value is its place.
    Word(&'static [&'static str]),
}

/// One parameter of the table.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Name in files, commands and configuration.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// The value unless something else is said.
    pub default: u64,
    doc: &'static str,
}

/// Why a text is no value of a parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// [`Code::Syntax`] or [`Code::OutOfRange`].
    pub code: Code,
    /// The rest of a sentence that begins with the parameter.
    pub text: String,
}

macro_rules! params {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $kind:expr, $default:expr;)+) => {
        /// One parameter.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Param { $($(#[doc = $doc])+ $variant,)+ }

        impl Param {
            /// Every parameter, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
        }

        const TABLE: &[Spec] = &[$(Spec {
            name: $name,
            kind: $kind,
            default: $default,
            doc: concat!($($doc),+),
        },)+];
    };
}

/// Words of `default_detach_policy`, as [`DETACH_POLICIES`] has them.
const DETACH_WORDS: &[&str] = &["minicopy", "minicopy=optional", "none"];
const DETACH_POLICIES: [Policy; 3] = [Policy::Minicopy, Policy::MinicopyOptional, Policy::Full];

/// Words of `auto_return`.
const RETURN_WORDS: &[&str] = &["off", "minicopy"];
/// Words of `read_policy`.
const READ_WORDS: &[&str] = &["cost", "round-robin"];
/// Words of `wbm_msg_mode`, as [`MessageMode::ALL`] has them.
const MESSAGE_WORDS: &[&str] = &[MessageMode::ALL[0].name(), MessageMode::ALL[1].name()];
/// Defaults of the message modes.
const MESSAGES: MessageSettings = MessageSettings::DEFAULT;

const fn number(least: u64, most: u64, unit: &'static str) -> Kind {
    Kind::Number { least, most, unit }
}

params! {
    /// Copies and merges of this unit that run at once; 0 holds all, and lowering it stops none that runs.
    MaxCopies = "max_copies", number(0, 200, "copies"), 4;
    /// With 0 no copy and no merge of this unit starts; those that wait are held.
    Priority = "priority", number(0, 10_000, ""), 5000;
    /// Copies give way to applications, but not below this rate of all copies of the unit together.
    CopyRateMin = "copy_rate_min", Kind::Rate, 10 << 20;
    /// No more than this rate of all copies of the unit together.
    CopyRateMax = "copy_rate_max", Kind::Rate, UNLIMITED;
    /// Steps of each copy or merge that are under way at once.
    CopyDepth = "copy_depth", number(1, 8, "steps"), 2;
    /// Time after which a command that has not ended is given up, with nothing changed.
    CommandTimeout = "command_timeout", number(1, 3600, "seconds"), 30;
    /// Time without an answer after which a member is expelled, if another source answers; 0 at the first error.
    MemberTimeout = "member_timeout", number(0, 65_535, "seconds"), 20;
    /// Time without an answer of any source after which requests fail that wait for one.
    Mvtimeout = "mvtimeout", number(1, 64_000, "seconds"), 3600;
    /// A member whose reads and writes take longer on average for three seconds leaves with a bitmap until it is fast
    /// again; 0 for never.
    MaxLatency = "max_latency", number(0, 60_000, "milliseconds"), 0;
    /// So many sources stay that answer, or nobody leaves for being slow.
    MinMembers = "min_members", number(1, 6, "members"), 1;
    /// Whether a member that was expelled since it was out of reach, or did not answer, comes back by itself.
    AutoReturn = "auto_return", Kind::Word(RETURN_WORDS), 0;
    /// Time after a mount before the merges and copies begin that it has queued.
    RecDly = "rec_dly", number(0, 65_535, "seconds"), 0;
    /// Time between two looks at the write-intent bitmap; it doubles while writes mark the same again, up to 32 times.
    HbmmRtc = "hbmm_rtc", number(1, 65_535, "seconds"), 5;
    /// The write-intent bitmap begins anew at a look only when it marks more blocks than this.
    HbmmResetThreshold = "hbmm_reset_threshold", number(0, 4_294_967_295, "blocks"), 0;
    /// What is wanted of a bitmap by a detach that does not say.
    DefaultDetachPolicy = "default_detach_policy", Kind::Word(DETACH_WORDS), 1;
    /// Which member a read that continues no stream goes to: cost and load, or those of least cost in turn.
    ReadPolicy = "read_policy", Kind::Word(READ_WORDS), 0;
    /// Site of this node: members of another one are read only when no other can; 0 is no site.
    SiteId = "site_id", number(0, 255, ""), 0;
    /// When first writes to regions are committed: as soon as possible together, or by the next three.
    WbmMsgMode = "wbm_msg_mode", Kind::Word(MESSAGE_WORDS), 0;
    /// In mode manual: how long announcements are counted, and wait in buffered-message mode.
    WbmMsgInt = "wbm_msg_int", number(10, 10_000, "milliseconds"), MESSAGES.interval_ms;
    /// In mode manual: as many announcements in an interval switch to buffered-message mode.
    WbmMsgUpper = "wbm_msg_upper", number(0, 4_294_967_295, "announcements"), MESSAGES.upper;
    /// In mode manual: fewer announcements in an interval switch back to single-message mode.
    WbmMsgLower = "wbm_msg_lower", number(0, 4_294_967_295, "announcements"), MESSAGES.lower;
    /// What is told of bitmaps: 0 nothing, 1 what becomes of them and switches of the message mode, 2 also each
    /// new write-intent bitmap.
    WbmOpcomLvl = "wbm_opcom_lvl", number(0, 2, ""), 1;
}

/// What decides which member is read: parameters of a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfMember {
    /// Cost of a read.
    ReadCost,
    /// Site of the member.
    Site,
    /// Seconds that it may leave requests unanswered.
    Timeout,
}

/// The largest number of a site, of a member or of the node.
pub const SITE_MAX: u32 = 255;
/// The longest time in seconds that a member may leave requests unanswered.
pub const TIMEOUT_MAX: u32 = 65_535;

impl OfMember {
    /// Member and parameter of a name such as `m1.read_cost`; none for the name of a parameter of the unit.
    ///
    /// # Errors
    /// [`Code::NoSuchParameter`] when members have no such parameter.
    pub fn find(name: &str) -> Result<Option<(&str, Self)>, Refusal> {
        let Some((member, of_member)) = name.rsplit_once('.') else {
            return Ok(None);
        };
        let all = [
            ("read_cost", Self::ReadCost),
            ("site", Self::Site),
            ("timeout", Self::Timeout),
        ];
        let found = all.into_iter().find(|(name, _)| *name == of_member);
        let (_, found) = found.ok_or_else(|| {
            let text = format!("members have no parameter {of_member}");
            Refusal::new(Code::NoSuchParameter, text)
                .at(name)
                .with_hint(
                    "members have read_cost, site and timeout; operations have rate_max, to be set",
                )
        })?;
        Ok(Some((member, found)))
    }

    /// The change that a value means.
    ///
    /// # Errors
    /// [`Code::Syntax`] or [`Code::OutOfRange`].
    pub fn tuning(self, name: &str, value: &str) -> Result<Tuning, Refusal> {
        let most = match self {
            Self::ReadCost => u32::MAX,
            Self::Site => SITE_MAX,
            Self::Timeout => TIMEOUT_MAX,
        };
        let number = digits(value).map(|number| {
            let number = u32::try_from(number).ok();
            number.filter(|number| *number <= most)
        });
        let wrong = |code| {
            let text = format!("{name} takes 0 to {most}, not {value}");
            Refusal::new(code, text).at(value)
        };
        let number = number
            .ok_or_else(|| wrong(Code::Syntax))?
            .ok_or_else(|| wrong(Code::OutOfRange))?;
        Ok(match self {
            Self::ReadCost => Tuning::ReadCost(number),
            Self::Site => Tuning::Site(number),
            Self::Timeout => Tuning::Timeout(number),
        })
    }
}

/// The rate that a text means.
///
/// # Errors
/// What a rate is, and what it was given.
pub fn read_rate(text: &str) -> Result<u64, Wrong> {
    RATE_MAX.read(text)
}

/// Operation and largest rate that a name such as `3.rate_max` and a value mean; none for another name.
///
/// # Errors
/// [`Code::Syntax`] or [`Code::OutOfRange`], with the values that it takes.
pub fn rate_of_operation(name: &str, value: &str) -> Result<Option<(OpId, u64)>, Refusal> {
    let op = name.strip_suffix(".rate_max").and_then(digits);
    let Some(op) = op else {
        return Ok(None);
    };
    let rate = read_rate(value).map_err(|wrong| {
        let says = format!("{name} {}", wrong.text);
        Refusal::new(wrong.code, says).at(value)
    })?;
    Ok(Some((OpId(op), rate)))
}

/// A largest rate that is no parameter of the unit: of an operation, or of the node.
const RATE_MAX: Spec = Spec {
    name: "rate_max",
    kind: Kind::Rate,
    default: UNLIMITED,
    doc: "No more than this rate.",
};

impl Param {
    /// What the table says of it.
    #[must_use]
    pub fn spec(self) -> &'static Spec {
        &TABLE[self as usize]
    }

    /// Its name in files, commands and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Its place in the table.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }

    /// The parameter of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|param| param.name() == name)
    }

    /// The parameter of this name.
    ///
    /// # Errors
    /// [`Code::NoSuchParameter`].
    pub fn find(name: &str) -> Result<Self, Refusal> {
        Self::from_name(name).ok_or_else(|| {
            let text = format!("there is no parameter {name}");
            Refusal::new(Code::NoSuchParameter, text).at(name)
        })
    }

    /// The value that a command names.
    ///
    /// # Errors
    /// [`Code::Syntax`] or [`Code::OutOfRange`], with the values that it takes.
    pub fn value(self, text: &str) -> Result<u64, Refusal> {
        self.spec().read(text).map_err(|wrong| {
            let says = format!("{} {}", self.name(), wrong.text);
            let hint = "`cat .shadow/params/HELP` shows what each parameter takes";
            Refusal::new(wrong.code, says).at(text).with_hint(hint)
        })
    }
}

impl Spec {
    /// Its meaning, one sentence.
    #[must_use]
    pub fn doc(&self) -> &'static str {
        self.doc.trim_ascii_start()
    }

    /// The value that a text means.
    ///
    /// # Errors
    /// What it takes, and what it was given.
    pub fn read(&self, text: &str) -> Result<u64, Wrong> {
        let wrong = |code| Wrong {
            code,
            text: format!("takes {}, not {text}", self.takes()),
        };
        match self.kind {
            Kind::Number { least, most, .. } => match digits(text) {
                Some(value) if (least..=most).contains(&value) => Ok(value),
                Some(_) => Err(wrong(Code::OutOfRange)),
                None => Err(wrong(Code::Syntax)),
            },
            Kind::Rate if text == "max" => Ok(UNLIMITED),
            Kind::Rate => match rate(text) {
                Some(value) if value > 0 => Ok(value),
                Some(_) => Err(wrong(Code::OutOfRange)),
                None => Err(wrong(Code::Syntax)),
            },
            Kind::Word(words) => {
                let place = words.iter().position(|word| *word == text);
                place
                    .and_then(|place| u64::try_from(place).ok())
                    .ok_or_else(|| wrong(Code::OutOfRange))
            }
        }
    }

    /// How a value is written; what is written is read as the same value.
    #[must_use]
    pub fn write(&self, value: u64) -> String {
        match self.kind {
            Kind::Rate => rate_text(value),
            Kind::Number { .. } => value.to_string(),
            Kind::Word(words) => {
                let word = usize::try_from(value).ok().and_then(|at| words.get(at));
                word.copied().unwrap_or_default().to_owned()
            }
        }
    }

    /// Type, smallest and largest value, default and unit, as columns of text; `-` where there is none.
    #[must_use]
    pub fn columns(&self) -> [String; 5] {
        let none = || "-".to_owned();
        let (kind, least, most, unit) = match self.kind {
            Kind::Number { least, most, unit } => (
                "number".to_owned(),
                least.to_string(),
                most.to_string(),
                unit.to_owned(),
            ),
            Kind::Rate => (
                "rate".to_owned(),
                "1".into(),
                "max".into(),
                "bytes/s".into(),
            ),
            Kind::Word(words) => (words.join("|"), none(), none(), String::new()),
        };
        let unit = if unit.is_empty() { none() } else { unit };
        [kind, least, most, self.write(self.default), unit]
    }

    /// The values that it takes, as part of a sentence.
    #[must_use]
    pub fn takes(&self) -> String {
        match self.kind {
            Kind::Number { least, most, unit } => {
                format!("{least} to {most} {unit}").trim_end().to_owned()
            }
            Kind::Rate => "bytes per second, with k, M or G, or max".to_owned(),
            Kind::Word(words) => words.join(", "),
        }
    }
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More digits than a number has are a number that is too large.
    plain.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Bytes per second; none for what is no rate or more than can be told apart from no limit.
fn rate(text: &str) -> Option<u64> {
    let powers = [('k', 10), ('K', 10), ('M', 20), ('G', 30)];
    let power = powers.iter().find(|(letter, _)| text.ends_with(*letter));
    let (number, shift) = match power {
        Some((letter, shift)) => (text.strip_suffix(*letter)?, *shift),
        None => (text, 0),
    };
    let value = digits(number)?.checked_mul(1 << shift)?;
    (value < UNLIMITED).then_some(value)
}

/// The values of all parameters at one instant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Values([u64; TABLE.len()]);

impl Default for Values {
    fn default() -> Self {
        Self(std::array::from_fn(|at| TABLE[at].default))
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.texts()).finish()
    }
}

impl Values {
    /// The value of a parameter.
    #[must_use]
    pub fn get(&self, param: Param) -> u64 {
        self.0[param.index()]
    }

    /// Gives a parameter another value, one that [`Spec::read`] has given.
    pub fn set(&mut self, param: Param, value: u64) {
        self.0[param.index()] = value;
    }

    /// Name and value of every parameter, as they are written.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let text = |param: &Param| (param.name(), param.spec().write(self.get(*param)));
        Param::ALL.iter().map(text)
    }
}

/// The values of a running unit: the control thread sets them, anybody reads them.
#[derive(Debug)]
pub struct Params([AtomicU64; TABLE.len()]);

impl Params {
    /// These values.
    #[must_use]
    pub fn new(values: Values) -> Self {
        Self(values.0.map(AtomicU64::new))
    }

    /// The values at one instant, as far as nobody sets them meanwhile.
    #[must_use]
    pub fn values(&self) -> Values {
        Values(std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed)))
    }

    /// Gives a parameter another value; gives the one before.
    pub(super) fn set(&self, param: Param, value: u64) -> u64 {
        self.0[param.index()].swap(value, Ordering::Relaxed)
    }

    fn get(&self, param: Param) -> u64 {
        self.0[param.index()].load(Ordering::Relaxed)
    }

    /// What the set is told so long after the mount.
    #[must_use]
    pub fn limits(&self, since_mount: Duration) -> Limits {
        let (copies, priority) = (self.get(Param::MaxCopies), self.get(Param::Priority));
        Limits {
            copies: usize::try_from(copies).unwrap_or(usize::MAX),
            held: priority == 0,
            reset_blocks: self.get(Param::HbmmResetThreshold),
            min_members: usize::try_from(self.get(Param::MinMembers)).unwrap_or(1),
            delayed: since_mount < Duration::from_secs(self.get(Param::RecDly)),
        }
    }

    /// Time between two looks at the write-intent bitmap.
    #[must_use]
    pub fn hbmm_rtc(&self) -> Duration {
        Duration::from_secs(self.get(Param::HbmmRtc))
    }

    /// Time after which a command is given up.
    #[must_use]
    pub fn command_timeout(&self) -> Duration {
        Duration::from_secs(self.get(Param::CommandTimeout))
    }

    /// Time without an answer after which a member is expelled, unless the member has a time of its own.
    #[must_use]
    pub fn member_timeout(&self) -> Duration {
        Duration::from_secs(self.get(Param::MemberTimeout))
    }

    /// The longest time that requests of a member may take on average; none when it does not matter.
    #[must_use]
    pub fn max_latency(&self) -> Option<Duration> {
        let millis = Some(self.get(Param::MaxLatency)).filter(|millis| *millis > 0);
        millis.map(Duration::from_millis)
    }

    /// Whether members that were expelled since they did not answer come back by themselves.
    #[must_use]
    pub fn auto_return(&self) -> bool {
        self.get(Param::AutoReturn) != 0
    }

    /// Time without an answer of any source after which requests fail.
    #[must_use]
    pub fn mvtimeout(&self) -> Duration {
        Duration::from_secs(self.get(Param::Mvtimeout))
    }

    /// What all copies of the unit together do at least when they give way, in bytes per second.
    #[must_use]
    pub fn copy_rate_min(&self) -> u64 {
        self.get(Param::CopyRateMin)
    }

    /// The most that all copies of the unit together do, in bytes per second.
    #[must_use]
    pub fn copy_rate_max(&self) -> u64 {
        self.get(Param::CopyRateMax)
    }

    /// Steps of each copy that are under way at once, at least 1.
    #[must_use]
    pub fn copy_depth(&self) -> usize {
        usize::try_from(self.get(Param::CopyDepth)).unwrap_or(1)
    }

    /// Whether reads that continue no stream take turns.
    #[must_use]
    pub fn takes_turns(&self) -> bool {
        self.get(Param::ReadPolicy) != 0
    }

    /// Site of this node; 0 when it has none.
    #[must_use]
    pub fn site(&self) -> u32 {
        u32::try_from(self.get(Param::SiteId)).unwrap_or(0)
    }

    /// How announcements of first writes are committed.
    #[must_use]
    pub fn messages(&self) -> MessageSettings {
        let place = usize::try_from(self.get(Param::WbmMsgMode));
        let mode = place.ok().and_then(|place| MessageMode::ALL.get(place));
        MessageSettings {
            mode: mode.copied().unwrap_or_default(),
            interval_ms: self.get(Param::WbmMsgInt),
            upper: self.get(Param::WbmMsgUpper),
            lower: self.get(Param::WbmMsgLower),
        }
    }

    /// How much is told of bitmaps in events and log: 0 to 2.
    #[must_use]
    pub fn wbm_opcom_lvl(&self) -> u64 {
        self.get(Param::WbmOpcomLvl)
    }

    /// The policy of a detach that does not say.
    #[must_use]
    pub fn default_detach_policy(&self) -> Policy {
        let place = usize::try_from(self.get(Param::DefaultDetachPolicy));
        let policy = place.ok().and_then(|place| DETACH_POLICIES.get(place));
        policy.copied().unwrap_or_default()
    }
}

/// Name, type, smallest, largest, default, unit and meaning of every parameter, one on a line.
#[must_use]
pub fn help() -> String {
    let mut rows = vec![["# name", "type", "min", "max", "default", "unit"].map(str::to_owned)];
    rows.extend(TABLE.iter().map(|spec| {
        let [kind, least, most, default, unit] = spec.columns();
        [spec.name.to_owned(), kind, least, most, default, unit]
    }));
    let longest = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(longest);
    let meanings = std::iter::once("meaning").chain(TABLE.iter().map(Spec::doc));
    let mut out = String::new();
    for (row, meaning) in rows.iter().zip(meanings) {
        for (cell, width) in row.iter().zip(widths) {
            out.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(meaning);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests;
