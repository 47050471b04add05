//! Refusals: a stable code, one sentence, the word at fault, a hint. Nothing is lost by one.

use std::fmt;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $hint:literal;)+) => {
        /// Stable code of a refusal or failure; scripts match on its name.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $($(#[doc = $doc])+ $variant,)+ }

        impl Code {
            /// Every code, in the order of the manual page.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that scripts see.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The code of this name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.name() == name)
            }

            /// What to do about it, when the refusal itself says nothing better.
            #[must_use]
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)+ }
            }

            /// When it occurs, one sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

codes! {
    /// The command cannot be parsed.
    Syntax = "syntax", "`cat .shadow/help` lists the commands";
    /// A number is outside its range.
    OutOfRange = "out-of-range", "`cat .shadow/help` shows the range";
    /// One write holds more than 4095 bytes.
    TooLong = "too-long", "write one command at a time";
    /// No member has this name.
    NoSuchMember = "no-such-member", "`ls .shadow/members` lists the members";
    /// No bitmap has this id.
    NoSuchBitmap = "no-such-bitmap", "`ls .shadow/bitmaps` lists the bitmaps";
    /// No operation has this number.
    NoSuchOperation = "no-such-operation", "`ls .shadow/operations` lists the operations";
    /// No parameter has this name.
    NoSuchParameter = "no-such-parameter", "`cat .shadow/params/HELP` lists the parameters";
    /// The image does not exist.
    NoSuchFile = "no-such-file", "check the path";
    /// The image or the name is a member already.
    AlreadyMember = "already-member", "`cat .shadow/show` shows the members";
    /// The member is detached already.
    AlreadyDetached = "already-detached", "attach it to bring it back";
    /// The member is the only source member.
    LastSource = "last-source", "attach another member first";
    /// The member is the target of a running copy.
    IsCopyTarget = "is-copy-target", "wait for the copy, or cancel it";
    /// The image is locked by another set or program.
    ImageLocked = "image-locked", "end the program that holds it";
    /// The object is being used.
    InUse = "in-use", "wait until it is free";
    /// The set is marked for a merge.
    MergePending = "merge-pending", "wait for the merge, or use policy=minicopy=optional";
    /// Two clean copies have both changed.
    SplitBrain = "split-brain", "decide for one copy: move the SCB of the other away, mount, and attach it anew";
    /// The member has no usable bitmap.
    NoBitmap = "no-bitmap", "use policy=minicopy=optional to copy everything";
    /// The image was written outside the set.
    ImageChanged = "image-changed", "use policy=compare, which writes only what differs";
    /// The image is not in the state that the set remembers.
    WrongGeneration = "wrong-generation", "use policy=compare, which writes only what differs";
    /// The image belongs to another set.
    OtherSet = "other-set", "release it from that set first";
    /// The image was never a member and is not blank.
    NotBlank = "not-blank", "add `confirm` to overwrite it";
    /// The image's label is another one.
    WrongLabel = "wrong-label", "check the path";
    /// The image is smaller than the unit.
    MemberTooSmall = "member-too-small", "use an image of at least the unit's size";
    /// There is no room for a bitmap.
    BitmapNoSpace = "bitmap-no-space", "free space in the state directory";
    /// There is no memory for a bitmap.
    BitmapNoMemory = "bitmap-no-memory", "free memory, or use policy=minicopy=optional";
    /// The image cannot be written.
    ReadOnlyImage = "read-only-image", "make the image writable";
    /// Only a copy could bring the member in.
    NeedsCopy = "needs-copy", "leave out nocopy";
    /// It cannot be told which member is right.
    NoMajority = "no-majority", "name the member whose bytes are right: source=NAME";
    /// The member is not a source member.
    NotASource = "not-a-source", "`cat .shadow/show` shows the source members";
    /// The operator has to agree first.
    NeedsConfirm = "needs-confirm", "add `confirm` to overwrite the image";
    /// The set has six members already.
    TooManyMembers = "too-many-members", "release a member first";
    /// The set has as many bitmaps as it can.
    TooManyBitmaps = "too-many-bitmaps", "delete a bitmap first";
    /// This node serves as many units as it may.
    TooManyUnits = "too-many-units", "stop another unit first";
    /// The state changed under the command.
    StateChanged = "state-changed", "look at the state and try again";
    /// The set is not in mount verification.
    NotInMountVerify = "not-in-mount-verify", "`cat .shadow/state` shows the state";
    /// The command did not finish in time and changed nothing.
    TimedOut = "timed-out", "look at the members' devices and try again";
    /// Only the owner of the set may do this.
    NotPermitted = "not-permitted", "become root";
    /// The program cannot do this here.
    NotSupported = "not-supported", "see shadowset(8)";
    /// The configuration is wrong.
    Config = "config", "see the example configurations";
    /// The unit is mounted already, or not mounted.
    NotMounted = "not-mounted", "`shadowset list` shows the mounted units";
    /// A system call failed.
    Io = "io", "see the log";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a command was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// One sentence without a full stop, naming the object.
    pub text: String,
    /// The word of the command that is at fault.
    pub word: Option<String>,
    hint: Option<String>,
}

impl Refusal {
    /// A refusal with the code's own hint.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            word: None,
            hint: None,
        }
    }

    /// Of a member whose departure is under way.
    pub(super) fn still_leaving(name: &str) -> Self {
        Self::new(Code::InUse, format!("{name} is still leaving"))
    }

    /// Names the word of the command that is at fault.
    #[must_use]
    pub fn at(mut self, word: impl Into<String>) -> Self {
        self.word = Some(word.into());
        self
    }

    /// Gives a better hint than the code's own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.code.hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_code_has_a_meaning_and_a_hint() {
        let mut names: Vec<_> = Code::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(Code::from_name(code.name()), Some(*code));
            assert!(
                code.meaning().ends_with('.') && !code.hint().is_empty(),
                "{code}"
            );
        }
    }
}
