//! One error for every port. The kind says what the caller must do; the text names the thing.

use std::borrow::Cow;

/// What every port and rule answers with.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller must do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The thing does not exist in this account. Do not retry.
    NotFound,
    /// A thing with this identity exists already. Read it instead.
    AlreadyExists,
    /// It changed since it was read. Read again and decide again.
    Conflict,
    /// The caller is no longer the owner. Stop at once, write nothing more.
    Fenced,
    /// The caller's fault; the message names the field and what was expected. Do not retry unchanged.
    Invalid,
    /// It could not be asked or told just now. Try again later.
    Unavailable,
    /// Stored data cannot be understood. A person must look.
    Corrupt,
    /// The caller may not do this.
    Denied,
}

/// A failure: kind, what it was about, and the cause.
///
/// `Display` is one line, lower case, and never prints the cause; a log walks the chain once, where the
/// error is consumed.
///
/// ```
/// use dbtcloud_core::{Error, ErrorKind};
/// let error = Error::invalid("schedule.cron", "expected five fields, got 3");
/// assert_eq!(error.kind(), ErrorKind::Invalid);
/// assert_eq!(error.field(), Some("schedule.cron"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` about `what` (a noun and its id, and what was expected of it).
    pub fn new(kind: ErrorKind, what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            what: what.into(),
            field: None,
            source: None,
        }
    }

    /// `NotFound` for a noun and its id.
    pub fn not_found(noun: &str, id: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{noun} {id} not found"))
    }

    /// `Invalid` for a field, with what was expected.
    pub fn invalid(field: impl Into<Cow<'static, str>>, expected: impl std::fmt::Display) -> Self {
        let field = field.into();
        let mut error = Self::new(ErrorKind::Invalid, format!("{field}: {expected}"));
        error.field = Some(field);
        error
    }

    /// `Unavailable`, with what could not be reached.
    pub fn unavailable(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unavailable, what)
    }

    /// `Conflict`, with what had changed.
    pub fn conflict(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Conflict, what)
    }

    /// `Fenced`, with what is no longer the caller's.
    pub fn fenced(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Fenced, what)
    }

    /// `Corrupt`, with what cannot be understood.
    pub fn corrupt(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Corrupt, what)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller must do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The field an `Invalid` error is about.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// Whether trying the same call again later can help.
    pub fn retryable(&self) -> bool {
        match self.kind {
            ErrorKind::Unavailable => true,
            ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::Conflict
            | ErrorKind::Fenced
            | ErrorKind::Invalid
            | ErrorKind::Corrupt
            | ErrorKind::Denied => false,
        }
    }

    /// The whole chain on one line, for logs.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
