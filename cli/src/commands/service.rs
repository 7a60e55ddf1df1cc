//! `lichen service`: the systemd user unit.
//!
//! `KillMode=process`: when systemd stops or replaces control, the datapath and the workloads live on.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::args::{Output, ServiceCommand};
use crate::{Outcome, daemon, output};

/// The unit's name.
const UNIT: &str = "lichen.service";

/// Why the service cannot be installed or removed.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error("neither XDG_CONFIG_HOME nor HOME is set, so there is no place for the unit; set one")]
    NoHome,
    #[error("the program's path {0} cannot be written in a unit; install it elsewhere")]
    Path(PathBuf),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("systemctl was not found; without systemd, the next command starts the daemon")]
    NoSystemd,
    #[error("`systemctl --user {0}` failed; is there a user session? see: loginctl enable-linger")]
    Refused(String),
}

/// Does what a `service` command says.
pub(crate) async fn service(command: &ServiceCommand, format: Output) -> Outcome {
    let path = unit_path()?;
    match command {
        ServiceCommand::Install => {
            let program = env::current_exe()?;
            let text = unit(&program).ok_or(ServiceError::Path(program))?;
            write(&path, &text)?;
            systemctl(&["daemon-reload"])?;
            // One started on demand is in the way; its datapath is adopted.
            daemon::make_way().await?;
            systemctl(&["enable", "--now", UNIT])?;
            match format {
                Output::Json => output::json(&serde_json::json!({ "installed": path }))?,
                Output::Table => output::line(&format!("Installed {}.", path.display()))?,
            }
        }
        ServiceCommand::Uninstall => {
            // Not there, or not running, is as good.
            let _ = systemctl(&["disable", "--now", UNIT]);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(ServiceError::Write { path, source }.into());
                }
                _ => {}
            }
            let _ = systemctl(&["daemon-reload"]);
            match format {
                Output::Json => output::json(&serde_json::json!({ "uninstalled": path }))?,
                Output::Table => {
                    output::line("Uninstalled. The next command starts the daemon on demand.")?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unit_path() -> Result<PathBuf, ServiceError> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = match variable("XDG_CONFIG_HOME") {
        Some(config) => config,
        None => variable("HOME").ok_or(ServiceError::NoHome)?.join(".config"),
    };
    Ok(config.join("systemd/user").join(UNIT))
}

/// `None` for a path that a unit cannot name.
fn unit(program: &Path) -> Option<String> {
    let program = program.to_str().filter(|path| !path.contains(['"', '\\', '\n', '%', '$']))?;
    Some(format!(
        "[Unit]\n\
         Description=Lichen, a rootless network for containers and virtual machines\n\
         \n\
         [Service]\n\
         ExecStart=\"{program}\" daemon --service\n\
         # The datapath and the workloads outlive control.\n\
         KillMode=process\n\
         # 75 is control asking to be started again.\n\
         Restart=on-failure\n\
         RestartSec=100ms\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n"
    ))
}

fn write(path: &Path, text: &str) -> Result<(), ServiceError> {
    let failed = |source| ServiceError::Write { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

fn systemctl(arguments: &[&str]) -> Result<(), ServiceError> {
    match Command::new("systemctl").arg("--user").args(arguments).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(ServiceError::Refused(arguments.join(" "))),
        Err(_) => Err(ServiceError::NoSystemd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_leaves_the_datapath_alive() {
        let text = unit(Path::new("/usr/local/bin/lichen")).unwrap();
        assert!(text.contains("\nKillMode=process\n"));
        assert!(text.contains("ExecStart=\"/usr/local/bin/lichen\" daemon --service\n"));
        assert!(unit(Path::new("/tmp/a\"b")).is_none());
    }
}
