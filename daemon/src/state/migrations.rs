//! The schema, as the steps that led to it. `user_version` counts the steps that a file has taken.

use rusqlite::{Connection, TransactionBehavior};

/// Each step once, in order. Never change one that was released; add another.
const STEPS: &[&str] = &[
    // Numbers are AUTOINCREMENT: the datapath knows things by them, so none is ever used twice.
    "CREATE TABLE networks (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         uid TEXT NOT NULL UNIQUE,
         name TEXT NOT NULL UNIQUE,
         subnet TEXT NOT NULL,
         gateway TEXT NOT NULL,
         mtu INTEGER NOT NULL,
         internal INTEGER NOT NULL,
         labels TEXT NOT NULL,
         created INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE workloads (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         uid TEXT NOT NULL UNIQUE,
         name TEXT NOT NULL UNIQUE,
         kind TEXT NOT NULL CHECK (kind IN ('run', 'attach')),
         network INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
         address TEXT NOT NULL,
         mac TEXT NOT NULL,
         allow_host TEXT NOT NULL,
         resolv_conf INTEGER NOT NULL,
         boot_id TEXT NOT NULL,
         created INTEGER NOT NULL,
         pid INTEGER,
         start_time INTEGER,
         netns_dev INTEGER,
         netns_ino INTEGER,
         UNIQUE (network, address),
         UNIQUE (network, mac),
         CHECK ((pid IS NULL) = (start_time IS NULL))
     ) STRICT;
     CREATE TABLE reservations (
         network INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
         name TEXT NOT NULL,
         address TEXT NOT NULL,
         expires INTEGER NOT NULL,
         PRIMARY KEY (network, name),
         UNIQUE (network, address)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE ports (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         host_ip TEXT NOT NULL,
         host_port INTEGER NOT NULL,
         target TEXT NOT NULL,
         target_port INTEGER NOT NULL,
         source TEXT NOT NULL CHECK (source IN ('client', 'gateway')),
         workload INTEGER REFERENCES workloads (id) ON DELETE CASCADE,
         UNIQUE (host_ip, host_port)
     ) STRICT;",
];

/// The `user_version` of a file that has taken every step.
pub(super) fn latest() -> u32 {
    u32::try_from(STEPS.len()).expect("a handful of steps")
}

/// Takes the steps that are missing, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let taken: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (number, step) in (1_u32..).zip(STEPS).skip_while(|(number, _)| *number <= taken) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_is_migrating_once() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        migrate(&mut connection).unwrap();
        let version: u32 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, latest());
    }
}
