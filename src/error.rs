//! One error type: a stable code, what was being done, and the cause.
//!
//! Shown to people as one sentence and a hint; to programs as an errno or an exit code.

use std::error::Error as StdError;
use std::fmt;

use crate::set::{Code, Refusal};

/// A failure with its stable code, context and cause.
#[derive(Debug)]
pub struct Error {
    code: Code,
    text: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error whose sentence names the operation and its object.
    #[must_use]
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            hint: None,
            source: None,
        }
    }

    /// An error of the system: `doing` says what was tried, on what.
    #[must_use]
    pub fn io(doing: impl Into<String>, cause: std::io::Error) -> Self {
        let code = match cause.kind() {
            std::io::ErrorKind::NotFound => Code::NoSuchFile,
            std::io::ErrorKind::PermissionDenied => Code::NotPermitted,
            std::io::ErrorKind::ReadOnlyFilesystem => Code::ReadOnlyImage,
            _ => Code::Io,
        };
        Self::new(code, doing).caused_by(cause)
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Gives a better hint than the code's own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &str {
        self.hint.as_deref().unwrap_or(self.code.hint())
    }

    /// The errno that a system call on the control tree answers.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let cause = self
            .source
            .as_ref()
            .and_then(|s| s.downcast_ref::<std::io::Error>());
        match (self.code, cause.and_then(std::io::Error::raw_os_error)) {
            (Code::Io, Some(errno)) => errno,
            (code, _) => errno(code),
        }
    }

    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        exit_code(self.code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.source {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let hint = refusal.hint().to_owned();
        Self::new(refusal.code, refusal.text).with_hint(hint)
    }
}

/// The errno of a code.
#[must_use]
pub fn errno(code: Code) -> i32 {
    match code {
        Code::Syntax | Code::OutOfRange | Code::Config => libc::EINVAL,
        Code::TooLong => libc::E2BIG,
        Code::NoSuchMember
        | Code::NoSuchBitmap
        | Code::NoSuchOperation
        | Code::NoSuchParameter
        | Code::NoSuchFile => libc::ENOENT,
        Code::AlreadyMember => libc::EEXIST,
        Code::AlreadyDetached => libc::EALREADY,
        Code::LastSource
        | Code::IsCopyTarget
        | Code::NotASource
        | Code::ImageLocked
        | Code::InUse => libc::EBUSY,
        Code::MergePending | Code::SplitBrain => libc::EUCLEAN,
        Code::NoBitmap => libc::ENODATA,
        Code::ImageChanged | Code::WrongGeneration => libc::ESTALE,
        Code::OtherSet | Code::NotBlank | Code::WrongLabel => libc::EMEDIUMTYPE,
        Code::MemberTooSmall | Code::BitmapNoSpace => libc::ENOSPC,
        Code::BitmapNoMemory => libc::ENOMEM,
        Code::ReadOnlyImage => libc::EROFS,
        Code::NeedsCopy | Code::NeedsConfirm | Code::NoMajority => libc::ECANCELED,
        Code::TooManyMembers => libc::EMLINK,
        Code::TooManyBitmaps | Code::TooManyUnits => libc::EUSERS,
        Code::StateChanged => libc::EAGAIN,
        Code::NotInMountVerify | Code::NotSupported => libc::EOPNOTSUPP,
        Code::TimedOut => libc::ETIMEDOUT,
        Code::NotPermitted => libc::EPERM,
        Code::NotMounted => libc::ENOTCONN,
        Code::Io => libc::EIO,
    }
}

/// The exit code of a code: 2 usage, 3 not found, 4 refused in this state, 124 timeout, else 1.
#[must_use]
pub fn exit_code(code: Code) -> u8 {
    match code {
        Code::Syntax | Code::OutOfRange | Code::TooLong => 2,
        Code::NoSuchMember
        | Code::NoSuchBitmap
        | Code::NoSuchOperation
        | Code::NoSuchParameter
        | Code::NoSuchFile
        | Code::NotMounted => 3,
        Code::TimedOut => 124,
        Code::Io | Code::Config | Code::NotPermitted | Code::NotSupported => 1,
        _ => 4,
    }
}
