//! The coordinator's memory: one redb file in its directory, every commit fsynced.

use nix::fcntl::{Flock, FlockArg};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use crate::Error;
use crate::state::{IdempotencyKey, RunRecord};

const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
/// By place in the order of submission.
const RUNS: TableDefinition<&str, &[u8]> = TableDefinition::new("runs");
/// Order of submission, by run id.
const ORDER: TableDefinition<&str, u64> = TableDefinition::new("order");
const ANSWERS: TableDefinition<&str, &str> = TableDefinition::new("answers");

const DATABASE: &str = "coordinator.redb";

const INCARNATION: &str = "incarnation";
const SUBMISSIONS: &str = "submissions";

/// The open store; its directory is locked as long as it lives.
pub(crate) struct Store {
    database: Database,
    _lock: Flock<File>,
}

/// What a coordinator finds at its start.
pub(crate) struct Recovered {
    /// Counts starts, this one included.
    pub incarnation: u64,
    /// In order of submission.
    pub runs: Vec<RunRecord>,
    pub answers: HashMap<IdempotencyKey, String>,
}

impl Store {
    /// Opens the store in `dir`, which is created if need be, and counts this start.
    pub fn open(dir: &Path) -> Result<(Store, Recovered), Error> {
        let io = |what| move |source| Error::Io { what, path: dir.to_owned(), source };
        // Whatever the umask: a directory that everybody can write would be refused below.
        let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made.map_err(io("create the directory"))?;
        // Before anything in it is believed: its records name directories that are written to.
        identity::files::trusted_directory(dir)?;
        check_database(&dir.join(DATABASE))?;
        let directory = File::open(dir).map_err(io("open the directory"))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| Error::DirectoryInUse { dir: dir.to_owned() })?;
        let database = Database::create(dir.join(DATABASE)).map_err(store("open"))?;
        let store = Store { database, _lock: lock };
        let recovered = store.recover()?;
        Ok((store, recovered))
    }

    fn recover(&self) -> Result<Recovered, Error> {
        let incarnation = self.write("count this start", |transaction| {
            let mut numbers = transaction.open_table(NUMBERS)?;
            let incarnation = numbers.get(INCARNATION)?.map_or(0, |n| n.value()) + 1;
            numbers.insert(INCARNATION, incarnation)?;
            // Made here, so that reading below finds them in a new database too.
            transaction.open_table(RUNS)?;
            transaction.open_table(ORDER)?;
            transaction.open_table(ANSWERS)?;
            Ok(incarnation)
        })?;
        let (mut stored, answers) = self.read().map_err(store("read the runs"))?;
        stored.sort_by_key(|(order, _)| *order);
        let runs = stored.iter().map(|(_, bytes)| serde_json::from_slice(bytes).map_err(Error::Record));
        Ok(Recovered { incarnation, runs: runs.collect::<Result<_, _>>()?, answers })
    }

    #[expect(clippy::type_complexity, reason = "two tables, read once")]
    fn read(&self) -> Result<(Vec<(u64, Vec<u8>)>, HashMap<IdempotencyKey, String>), redb::Error> {
        let transaction = self.database.begin_read()?;
        let order = transaction.open_table(ORDER)?;
        let mut runs = Vec::new();
        for row in transaction.open_table(RUNS)?.iter()? {
            let (run_id, bytes) = row?;
            let place = order.get(run_id.value())?.map_or(0, |n| n.value());
            runs.push((place, bytes.value().to_vec()));
        }
        let mut answers = HashMap::new();
        for row in transaction.open_table(ANSWERS)?.iter()? {
            let (key, answer) = row?;
            answers.insert(IdempotencyKey(key.value().to_owned()), answer.value().to_owned());
        }
        Ok((runs, answers))
    }

    /// Stores a run; durable when this returns. A queued one takes its place at the end of the order.
    pub fn put_run(&self, record: &RunRecord) -> Result<(), Error> {
        let bytes = serde_json::to_vec(record).map_err(Error::Record)?;
        self.write("store a run", |transaction| {
            transaction.open_table(RUNS)?.insert(record.run_id.as_str(), bytes.as_slice())?;
            if record.stage == crate::state::Stage::Queued {
                let mut numbers = transaction.open_table(NUMBERS)?;
                let place = numbers.get(SUBMISSIONS)?.map_or(0, |n| n.value()) + 1;
                numbers.insert(SUBMISSIONS, place)?;
                transaction.open_table(ORDER)?.insert(record.run_id.as_str(), place)?;
            }
            Ok(())
        })
    }

    /// Stores what the call with this key was answered.
    pub fn put_answer(&self, key: &IdempotencyKey, answer: &str) -> Result<(), Error> {
        self.write("store an answer", |transaction| {
            transaction.open_table(ANSWERS)?.insert(key.0.as_str(), answer)?;
            Ok(())
        })
    }

    fn write<T>(
        &self,
        what: &'static str,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let transaction = self.database.begin_write().map_err(store(what))?;
        let value = change(&transaction).map_err(store(what))?;
        transaction.commit().map_err(store(what))?;
        Ok(value)
    }
}

/// A database that is there already is a plain file of ours: others may write the directory, and put anything there.
fn check_database(path: &Path) -> Result<(), Error> {
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|source| Error::Io { what: "look at", path: path.to_owned(), source })?,
    };
    if found.is_file() && found.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    let source = std::io::Error::other("it is not a plain file of this user");
    Err(Error::Io { what: "use", path: path.to_owned(), source })
}

fn store<E: Into<redb::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Store { what, source: Box::new(source.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Stage, Summary};

    fn record(run_id: &str, stage: Stage) -> RunRecord {
        RunRecord {
            run_id: run_id.to_owned(),
            run_dir: "/runs/x".to_owned(),
            config_toml: "[run]\n".to_owned(),
            workers: 2,
            threads: None,
            checkpoint_step: Some(7),
            generation: 3,
            stage,
            reason: String::new(),
            exit_code: None,
            summary: Summary { step: 9, loss: 0.1 + 0.2, ..Summary::default() },
            accept_changed_data: false,
            last_checkpoint: String::new(),
        }
    }

    #[test]
    fn a_restart_finds_everything_and_counts_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (store, found) = Store::open(dir.path()).unwrap();
        assert_eq!((found.incarnation, found.runs.len()), (1, 0));
        let key = IdempotencyKey("submit/k".to_owned());
        // Ids sort the other way round than submissions.
        store.put_run(&record("b", Stage::Queued)).unwrap();
        store.put_run(&record("a", Stage::Queued)).unwrap();
        store.put_run(&record("b", Stage::Active)).unwrap();
        store.put_answer(&key, "b").unwrap();
        drop(store);

        let (_store, found) = Store::open(dir.path()).unwrap();
        assert_eq!(found.incarnation, 2);
        assert_eq!(found.runs, [record("b", Stage::Active), record("a", Stage::Queued)]);
        assert_eq!(found.answers[&key], "b");
    }

    #[test]
    fn a_second_coordinator_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        let Err(error) = Store::open(dir.path()) else { panic!("two coordinators share a directory") };
        assert!(matches!(error, Error::DirectoryInUse { .. }), "{error}");
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    }
}
