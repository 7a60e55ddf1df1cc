//! Opening the file, and refusing one that cannot be trusted: it is never emptied silently.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::migrations;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not a database, or a damaged one.
    #[error(
        "the state file {path} is damaged ({detail}); restore it from a copy, or start afresh with: \
         mv {path} {path}.damaged"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Written by a newer program.
    #[error(
        "the state file {path} has schema {found}, and this lichen knows {known}; \
         it was written by a newer version: use that one"
    )]
    Future {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The file system said no.
    #[error("cannot use the state file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// SQLite said no.
    #[error("cannot open the state file {path}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}

/// Opens the file, made if missing, checked whole and brought to the newest schema.
pub fn open(path: &Path) -> Result<Connection, OpenError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => {
            return Err(OpenError::Damaged { path: path.to_owned(), detail: "it is empty".into() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    }
    let sqlite = |source| judge(path, source);
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(sqlite)?;
    configure(&connection).map_err(sqlite)?;
    check(&connection, path)?;
    migrations::migrate(&mut connection).map_err(sqlite)?;
    Ok(connection)
}

/// Makes the file under another name and moves it into place whole: a crash never leaves an empty one,
/// which could not be told from a lost one.
fn create(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // A journal of a file that is gone would be replayed into the new one.
    for base in [path, &fresh] {
        for suffix in ["-wal", "-shm", "-journal"] {
            let mut leftover = base.as_os_str().to_owned();
            leftover.push(suffix);
            remove_if_there(Path::new(&leftover)).map_err(io)?;
        }
    }
    remove_if_there(&fresh).map_err(io)?;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(io)?;
    let sqlite = |source| judge(path, source);
    let mut connection = Connection::open(&fresh).map_err(sqlite)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(sqlite)?;
    migrations::migrate(&mut connection).map_err(sqlite)?;
    connection.close().map_err(|(_, source)| judge(path, source))?;
    fs::rename(&fresh, path).map_err(io)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "trusted_schema", "OFF")
}

fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let sqlite = |source| judge(path, source);
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    let known = migrations::latest();
    if found > known {
        return Err(OpenError::Future { path: path.to_owned(), found, known });
    }
    let detail: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    let damaged = |detail: String| Err(OpenError::Damaged { path: path.to_owned(), detail });
    if detail != "ok" {
        return damaged(detail.replace('\n', " "));
    }
    // Our file is moved into place with its schema, so one without is not ours.
    if found == 0 {
        return damaged("it has no schema".to_owned());
    }
    Ok(())
}

fn judge(path: &Path, source: rusqlite::Error) -> OpenError {
    match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            OpenError::Damaged { path: path.to_owned(), detail: source.to_string() }
        }
        _ => OpenError::Sqlite { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_file_is_made_once_and_opened_again() {
        let scratch = Scratch::new("open");
        let path = scratch.path().join("lichen.db");
        open(&path)
            .unwrap()
            .execute(
                "INSERT INTO networks (uid, name, subnet, gateway, mtu, internal, labels, created)
             VALUES ('u', 'n', '10.0.0.0/24', '10.0.0.1', 1500, 0, '{}', 0)",
                [],
            )
            .unwrap();
        let count: u32 = open(&path)
            .unwrap()
            .query_row("SELECT count(*) FROM networks", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn an_empty_truncated_or_overwritten_file_is_refused_by_name() {
        let scratch = Scratch::new("damaged");
        let path = scratch.path().join("lichen.db");
        let refused = |what: &str| {
            let error = open(&path).expect_err(what);
            assert!(matches!(error, OpenError::Damaged { .. }), "{what}: {error:?}");
            assert!(error.to_string().contains("lichen.db"), "{error}");
        };
        fs::write(&path, b"").unwrap();
        refused("empty");
        fs::write(&path, b"not a database, just text, and long enough to have a header").unwrap();
        refused("text");
        fs::remove_file(&path).unwrap();
        drop(open(&path).unwrap());
        let len = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        refused("truncated");
        fs::remove_file(&path).unwrap();
        drop(open(&path).unwrap());
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(4096)).unwrap();
        file.write_all(&[0xa5; 4096]).unwrap();
        refused("a random page");
    }

    #[test]
    fn a_file_of_a_newer_program_is_refused_and_left_alone() {
        let scratch = Scratch::new("future");
        let path = scratch.path().join("lichen.db");
        open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Future { found: 99, .. }), "{error:?}");
        assert!(path.exists());
    }

    #[test]
    fn the_journal_of_a_lost_file_is_not_replayed_into_a_new_one() {
        let scratch = Scratch::new("journal");
        let path = scratch.path().join("lichen.db");
        fs::write(scratch.path().join("lichen.db-wal"), b"old").unwrap();
        open(&path).unwrap();
    }
}
