//! Why a workload could not be started, and what to do about it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::os_error::OsError;

/// Why [`launch`](crate::launch) or what follows it failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The caller's fault.
    #[error("no command given; write it after --, for example: lichen run -- sh")]
    NoCommand,
    /// The log file of a detached workload.
    #[error("cannot open the log {}: {source}", path.display())]
    Log {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine's administrator switched user namespaces off.
    #[error(
        "user namespaces are switched off ({sysctl} = 0), and Lichen is built on them; \
         root can allow them: sysctl -w {sysctl}={remedy}"
    )]
    UserNamespacesOff {
        /// Name of the setting.
        sysctl: &'static str,
        /// A value that allows them.
        remedy: u32,
    },
    /// Ubuntu 23.10 and later.
    #[error(
        "AppArmor forbids user namespaces to programs without a profile \
         (kernel.apparmor_restrict_unprivileged_userns = 1); Lichen's is contrib/apparmor/lichen in its source, \
         which root installs: cp contrib/apparmor/lichen /etc/apparmor.d/ && apparmor_parser -r /etc/apparmor.d/lichen"
    )]
    AppArmor,
    /// The limit is not zero but used up.
    #[error(
        "the limit of user namespaces is reached; end some workloads, or let root raise it: \
         sysctl -w user.max_user_namespaces=15000"
    )]
    TooManyNamespaces,
    /// EPERM without a setting that explains it.
    #[error(
        "the kernel refuses a new user namespace; this is so in a chroot and in containers whose \
         seccomp filter forbids it: run Lichen outside of it"
    )]
    NamespacesRefused,
    /// Some other step failed.
    #[error("cannot prepare the workload's namespaces: {0}")]
    Preparation(Refusal),
    /// It was killed, or crashed.
    #[error("the workload's supervisor ended before the workload was ready")]
    SupervisorGone,
    /// COMMAND of a detached workload could not be executed.
    #[error("{reason}")]
    NotStarted {
        /// What the exit code would have been: 126 or 127.
        code: u8,
        /// Which program, and why.
        reason: String,
    },
    /// A system call of the launcher itself.
    #[error("cannot start the workload's supervisor: {0}")]
    System(#[from] io::Error),
}

impl LaunchError {
    /// The exit code that Docker's users expect: 126 or 127 when COMMAND could not be executed, else 125.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotStarted { code, .. } => *code,
            _ => 125,
        }
    }
}

/// A step of the supervisor that the kernel refused.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {os}")]
pub struct Refusal {
    pub(crate) step: Step,
    pub(crate) what: String,
    pub(crate) os: OsError,
}

/// Where the supervisor was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Namespaces,
    Identity,
    Mount,
    Inside,
}

impl Refusal {
    pub(crate) fn new(step: Step, what: impl Into<String>, os: impl Into<OsError>) -> Self {
        Self { step, what: what.into(), os: os.into() }
    }

    /// The setting of the machine that explains this refusal, or the refusal itself.
    pub(crate) fn explained(self) -> LaunchError {
        self.explained_by(Path::new("/proc/sys"))
    }

    fn explained_by(self, sysctls: &Path) -> LaunchError {
        let setting = |name: &str| {
            fs::read_to_string(sysctls.join(name)).ok().and_then(|text| text.trim().parse().ok())
        };
        // AppArmor lets the namespace be made and then takes its capabilities away, so any later step
        // may be the one that fails.
        if self.os.is_refusal()
            && setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1)
        {
            return LaunchError::AppArmor;
        }
        if self.step != Step::Namespaces {
            return LaunchError::Preparation(self);
        }
        if setting("user/max_user_namespaces") == Some(0) {
            return LaunchError::UserNamespacesOff {
                sysctl: "user.max_user_namespaces",
                remedy: 15000,
            };
        }
        // Debian's own switch, of kernels before 5.10.
        if setting("kernel/unprivileged_userns_clone") == Some(0) {
            return LaunchError::UserNamespacesOff {
                sysctl: "kernel.unprivileged_userns_clone",
                remedy: 1,
            };
        }
        match self.os.raw() {
            libc::ENOSPC | libc::EUSERS => LaunchError::TooManyNamespaces,
            _ if self.os.is_refusal() => LaunchError::NamespacesRefused,
            _ => LaunchError::Preparation(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn explained(step: Step, errno: Errno, settings: &[(&str, &str)]) -> LaunchError {
        let sysctls = std::env::temp_dir().join(format!(
            "lichen-sysctls-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        for (name, value) in settings {
            let file = sysctls.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, value).unwrap();
        }
        let error = Refusal::new(step, "unshare", errno).explained_by(&sysctls);
        let _ = fs::remove_dir_all(&sysctls);
        error
    }

    #[test]
    fn a_limit_of_zero_namespaces_names_the_setting_that_allows_them() {
        let error =
            explained(Step::Namespaces, Errno::NOSPC, &[("user/max_user_namespaces", "0\n")]);
        assert!(error.to_string().contains("sysctl -w user.max_user_namespaces=15000"), "{error}");
    }

    #[test]
    fn debians_old_switch_is_named() {
        let error =
            explained(Step::Namespaces, Errno::PERM, &[("kernel/unprivileged_userns_clone", "0")]);
        assert!(error.to_string().contains("kernel.unprivileged_userns_clone=1"), "{error}");
    }

    #[test]
    fn apparmors_restriction_names_the_profile_whichever_step_it_hits() {
        let restricted = [("kernel/apparmor_restrict_unprivileged_userns", "1\n")];
        for step in [Step::Namespaces, Step::Identity, Step::Mount] {
            let error = explained(step, Errno::ACCESS, &restricted);
            assert!(matches!(error, LaunchError::AppArmor), "{step:?}: {error}");
        }
    }

    #[test]
    fn a_used_up_limit_is_not_called_switched_off() {
        let error = explained(Step::Namespaces, Errno::NOSPC, &[("user/max_user_namespaces", "5")]);
        assert!(matches!(error, LaunchError::TooManyNamespaces), "{error}");
    }

    #[test]
    fn a_refusal_without_a_setting_speaks_of_chroots_and_containers() {
        let error = explained(Step::Namespaces, Errno::PERM, &[]);
        assert!(matches!(error, LaunchError::NamespacesRefused), "{error}");
    }

    #[test]
    fn a_failed_mount_is_reported_as_what_it_is() {
        let error = explained(Step::Mount, Errno::NOENT, &[("user/max_user_namespaces", "0")]);
        assert_eq!(
            error.to_string(),
            "cannot prepare the workload's namespaces: unshare: No such file or directory (os error 2)"
        );
    }
}
