//! Every kind of identifier, in one list. Ids are positive integers (dbt Cloud's API has integers) and stay
//! below 2^53 so that JSON readers keep them exact.

macro_rules! id_type {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(i64);

        impl $name {
            /// Wraps an integer that is known to be an id of this kind.
            pub const fn new(value: i64) -> Self { Self(value) }
            /// The integer, for storage and wire formats.
            pub const fn get(self) -> i64 { self.0 }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { self.0.fmt(f) }
        }

        impl From<$name> for i64 {
            fn from(id: $name) -> Self { id.0 }
        }

        impl From<i64> for $name {
            fn from(value: i64) -> Self { Self(value) }
        }
    )+};
}

id_type! {
    /// An account: the tenant that every other noun belongs to.
    AccountId,
    /// An entry of the audit log.
    AuditId,
    /// A connection: where a warehouse is.
    ConnectionId,
    /// Credentials: who logs in to a warehouse.
    CredentialsId,
    /// An environment of a project.
    EnvironmentId,
    /// Extended attributes merged over an environment's profile.
    ExtendedAttributesId,
    /// A job definition.
    JobId,
    /// A notification.
    NotificationId,
    /// A project.
    ProjectId,
    /// A git repository.
    RepositoryId,
    /// One run of a job.
    RunId,
    /// A develop session.
    SessionId,
    /// One step of a run.
    StepId,
    /// An API token.
    TokenId,
    /// A user.
    UserId,
    /// An environment variable in one scope.
    VariableId,
    /// A webhook.
    WebhookId,
}
