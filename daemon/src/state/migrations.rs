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
    // Virtual machines. A constraint cannot be changed, so the table is made anew; the counter of its
    // numbers goes on where it was.
    "CREATE TABLE workloads_new (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         uid TEXT NOT NULL UNIQUE,
         name TEXT NOT NULL UNIQUE,
         kind TEXT NOT NULL CHECK (kind IN ('run', 'attach', 'vm')),
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
     INSERT INTO workloads_new SELECT * FROM workloads;
     DELETE FROM sqlite_sequence WHERE name = 'workloads_new';
     INSERT INTO sqlite_sequence (name, seq)
         SELECT 'workloads_new', seq FROM sqlite_sequence WHERE name = 'workloads';
     DROP TABLE workloads;
     ALTER TABLE workloads_new RENAME TO workloads;",
    // Published UDP ports: a number is taken once for each transport.
    "CREATE TABLE ports_new (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         host_ip TEXT NOT NULL,
         host_port INTEGER NOT NULL,
         protocol TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
         target TEXT NOT NULL,
         target_port INTEGER NOT NULL,
         source TEXT NOT NULL CHECK (source IN ('client', 'gateway')),
         workload INTEGER REFERENCES workloads (id) ON DELETE CASCADE,
         UNIQUE (host_ip, host_port, protocol)
     ) STRICT;
     INSERT INTO ports_new
         SELECT id, host_ip, host_port, 'tcp', target, target_port, source, workload FROM ports;
     DELETE FROM sqlite_sequence WHERE name = 'ports_new';
     INSERT INTO sqlite_sequence (name, seq)
         SELECT 'ports_new', seq FROM sqlite_sequence WHERE name = 'ports';
     DROP TABLE ports;
     ALTER TABLE ports_new RENAME TO ports;",
    // What a virtual machine's monitor speaks.
    "ALTER TABLE workloads ADD COLUMN attachment TEXT
         CHECK (attachment IN ('vhost-user', 'stream', 'dgram'));
     UPDATE workloads SET attachment = 'vhost-user' WHERE kind = 'vm';",
    // IPv6: this installation's own 48 bits (RFC 4193 3.2), chosen once, and of them a /64 for each network.
    "CREATE TABLE site (prefix48 TEXT NOT NULL) STRICT;
     INSERT INTO site
         SELECT 'fd' || substr(h, 1, 2) || ':' || substr(h, 3, 4) || ':' || substr(h, 7, 4)
         FROM (SELECT lower(hex(randomblob(5))) AS h);
     ALTER TABLE networks ADD COLUMN prefix6 TEXT;
     UPDATE networks SET prefix6 = (SELECT prefix48 FROM site) || printf(':%x::/64', id);",
    // Taps of several queues.
    "ALTER TABLE workloads ADD COLUMN queues INTEGER NOT NULL DEFAULT 1 CHECK (queues > 0);",
    // NAT64, which networks have when they are made with it.
    "ALTER TABLE networks ADD COLUMN nat64 INTEGER NOT NULL DEFAULT 0 CHECK (nat64 IN (0, 1));",
];

/// The `user_version` of a file that has taken every step.
pub(super) fn latest() -> u32 {
    u32::try_from(STEPS.len()).expect("a handful of steps")
}

/// Takes the steps that are missing, each in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let taken: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // A table that is made anew must not take its references with it; SQLite ignores this inside a transaction.
    let enforced: bool = connection.pragma_query_value(None, "foreign_keys", |row| row.get(0))?;
    connection.pragma_update(None, "foreign_keys", false)?;
    let result = take_steps(connection, taken);
    connection.pragma_update(None, "foreign_keys", enforced)?;
    result
}

fn take_steps(connection: &mut Connection, taken: u32) -> rusqlite::Result<()> {
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

    #[test]
    fn networks_of_an_earlier_schema_get_a_prefix_of_one_site() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&STEPS[..4].concat()).unwrap();
        connection.pragma_update(None, "user_version", 4).unwrap();
        connection
            .execute_batch(
                "INSERT INTO networks VALUES (1, 'u', 'n', 's', 'g', 1500, 0, '{}', 0);
                 INSERT INTO networks VALUES (300, 'v', 'o', 's', 'g', 1500, 0, '{}', 0);",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let text =
            |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        let site = text("SELECT prefix48 FROM site");
        assert!(site.starts_with("fd") && site.len() == 14, "{site}");
        assert_eq!(text("SELECT prefix6 FROM networks WHERE id = 1"), format!("{site}:1::/64"));
        assert_eq!(text("SELECT prefix6 FROM networks WHERE id = 300"), format!("{site}:12c::/64"));
    }

    #[test]
    fn workloads_that_were_there_have_one_queue_and_none_has_no_queue() {
        let mut connection = Connection::open_in_memory().unwrap();
        STEPS[..5].iter().for_each(|step| connection.execute_batch(step).unwrap());
        connection.pragma_update(None, "user_version", 5).unwrap();
        connection
            .execute_batch(
                "INSERT INTO networks VALUES (1, 'u', 'n', 's', 'g', 1500, 0, '{}', 0, NULL);
                 INSERT INTO workloads VALUES
                     (1, 'a', 'web', 'run', 1, 'x', 'm', '[]', 0, 'b', 0, NULL, NULL, NULL, NULL, NULL);",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let queues = connection.query_row("SELECT queues FROM workloads", [], |row| row.get(0));
        assert_eq!(queues, Ok(1));
        assert!(connection.execute_batch("UPDATE workloads SET queues = 0").is_err());
    }

    #[test]
    fn networks_that_were_there_have_no_nat64() {
        let mut connection = Connection::open_in_memory().unwrap();
        STEPS[..6].iter().for_each(|step| connection.execute_batch(step).unwrap());
        connection.pragma_update(None, "user_version", 6).unwrap();
        connection
            .execute_batch(
                "INSERT INTO networks VALUES (1, 'u', 'n', 's', 'g', 1500, 0, '{}', 0, NULL);",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let nat64 = connection.query_row("SELECT nat64 FROM networks", [], |row| row.get(0));
        assert_eq!(nat64, Ok(false));
        assert!(connection.execute_batch("UPDATE networks SET nat64 = 2").is_err());
    }

    #[test]
    fn workloads_of_the_first_schema_keep_their_rows_ports_and_numbers() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", true).unwrap();
        connection.execute_batch(STEPS[0]).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection
            .execute_batch(
                "INSERT INTO networks VALUES (1, 'u', 'n', 's', 'g', 1500, 0, '{}', 0);
                 INSERT INTO workloads VALUES
                     (3, 'a', 'web', 'run', 1, 'x', 'm', '[]', 0, 'b', 0, NULL, NULL, NULL, NULL),
                     (9, 'b', 'gone', 'run', 1, 'y', 'n', '[]', 0, 'b', 0, NULL, NULL, NULL, NULL);
                 DELETE FROM workloads WHERE id = 9;
                 INSERT INTO ports VALUES
                     (1, '127.0.0.1', 80, 'web', 80, 'client', 3),
                     (7, '127.0.0.1', 81, 'web', 80, 'client', 3);
                 DELETE FROM ports WHERE id = 7;",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM ports WHERE workload = 3"), 1);
        connection
            .execute_batch(
                "INSERT INTO workloads
                     (uid, name, kind, network, address, mac, allow_host, resolv_conf, boot_id, created)
                 VALUES ('c', 'db', 'vm', 1, 'z', 'o', '[]', 0, 'b', 0);",
            )
            .unwrap();
        assert_eq!(count("SELECT id FROM workloads WHERE name = 'db'"), 10);
        assert_eq!(count("SELECT count(*) FROM workloads WHERE attachment IS NULL"), 2);
        connection
            .execute_batch(
                "INSERT INTO ports
                     (host_ip, host_port, protocol, target, target_port, source, workload)
                 VALUES ('127.0.0.1', 80, 'udp', 'web', 80, 'client', 3);",
            )
            .unwrap();
        assert_eq!(count("SELECT id FROM ports WHERE protocol = 'udp'"), 8);
        assert_eq!(count("SELECT id FROM ports WHERE protocol = 'tcp'"), 1);
        connection.execute_batch("DELETE FROM workloads WHERE id = 3").unwrap();
        assert_eq!(count("SELECT count(*) FROM ports"), 0, "the reference still holds");
    }

    #[test]
    fn places_of_virtual_machines_that_were_there_speak_vhost_user() {
        let mut connection = Connection::open_in_memory().unwrap();
        STEPS[..3].iter().for_each(|step| connection.execute_batch(step).unwrap());
        connection.pragma_update(None, "user_version", 3).unwrap();
        connection
            .execute_batch(
                "INSERT INTO networks VALUES (1, 'u', 'n', 's', 'g', 1500, 0, '{}', 0);
                 INSERT INTO workloads VALUES
                     (1, 'a', 'web', 'run', 1, 'x', 'm', '[]', 0, 'b', 0, NULL, NULL, NULL, NULL),
                     (2, 'b', 'db', 'vm', 1, 'y', 'n', '[]', 0, 'b', 0, NULL, NULL, NULL, NULL);",
            )
            .unwrap();
        migrate(&mut connection).unwrap();
        let attachment = |name: &str| {
            let sql = "SELECT attachment FROM workloads WHERE name = ?1";
            connection.query_row(sql, [name], |row| row.get::<_, Option<String>>(0)).unwrap()
        };
        assert_eq!((attachment("web"), attachment("db")), (None, Some("vhost-user".to_owned())));
    }
}
