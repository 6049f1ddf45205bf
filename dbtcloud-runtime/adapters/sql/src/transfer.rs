//! Moving an installation from one database to another, of whatever engine: every table that the schema has,
//! in the order of its primary key, page by page. The schema itself says what there is, so that no table is
//! forgotten; statements here are put together from its names.

use dbtcloud_core::ports::History;
use dbtcloud_core::{Error, Result, Timestamp};
use sha2::{Digest, Sha256};

use crate::engine::{Engine, Link, Row, Sql, Value, args};
use crate::storage::SqlStorage;

/// Rows of one page, and of one transaction.
const PAGE_ROWS: usize = 200;
/// The same of a table whose rows may be big: a piece of a log has up to 1 MiB.
const BIG_PAGE_ROWS: usize = 32;

/// The tables but for the record of the schema and the number of the last run; steps last, which refer to their runs
/// on SQLite. Over the catalog.
const TABLES: Sql = Sql::each(
    "SELECT c.relname::text AS name FROM pg_class c \
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition \
        AND c.relname NOT IN ('schema_migrations', 'transfer', 'run_numbers') \
     ORDER BY c.relname = 'run_steps', c.relname",
    "SELECT t.name FROM sqlite_schema t \
     WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
        AND t.name NOT IN ('schema_migrations', 'transfer', 'run_numbers') \
     ORDER BY t.name = 'run_steps', t.name",
);

/// The columns of a table: name, type, and place in the primary key (0 for the others). Over the catalog.
const COLUMNS: Sql = Sql::each(
    "SELECT a.attname::text AS name, format_type(a.atttypid, NULL) AS type, \
        coalesce(array_position(i.indkey::smallint[], a.attnum), -1)::bigint + 1 AS place \
     FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
     WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname",
    "SELECT name, type, pk AS place FROM pragma_table_info($1) ORDER BY name",
);

/// Tables that are copied in the order of another unique key than their primary one: history that is divided on
/// PostgreSQL has no primary key that leaves the run out.
const KEYS: [(&str, [&str; 2]); 1] = [("run_steps", ["run_id", "step_index"])];

/// The number of the last run, which is a sequence on one engine and a table on the other.
pub(crate) const LAST_RUN: Sql = Sql::each(
    "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM run_numbers",
    "SELECT last FROM run_numbers",
);
pub(crate) const SET_LAST_RUN: Sql = Sql::each(
    "SELECT setval('run_numbers', greatest($1, 1), $1 > 0)",
    "UPDATE run_numbers SET last = $1",
);

/// Says that a copy into this database has begun and not ended.
const MARK: Sql = Sql::both("CREATE TABLE transfer (begun_at BIGINT NOT NULL)");
const MARKED: Sql = Sql::each(
    "SELECT count(*) AS present FROM pg_class WHERE oid = to_regclass('transfer')",
    "SELECT count(*) AS present FROM sqlite_schema WHERE type = 'table' AND name = 'transfer'",
);
const UNMARK: Sql = Sql::both("DROP TABLE transfer");

/// What a server holds now. A few rows.
const HELD: Sql = Sql::both(
    "SELECT (SELECT count(*) FROM leases WHERE held_until > $1) + \
        (SELECT count(*) FROM run_queue WHERE lease_until > $1) AS held",
);

/// What was copied of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The table.
    pub table: String,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 over all of them, in the order of the primary key; alike on both engines.
    pub digest: String,
}

impl Copied {
    pub(crate) fn new(table: String, rows: u64, digest: Sha256) -> Self {
        let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { table, rows, digest }
    }
}

#[derive(Debug)]
pub(crate) struct Column {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Bool,
    Text,
    Bytes,
}

pub(crate) struct Table {
    pub(crate) name: String,
    columns: Vec<Column>,
    /// Columns of the primary key, in its order, as places in `columns`.
    key: Vec<usize>,
}

/// A value as both engines have it: a boolean is 0 or 1.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Cell {
    pub(crate) fn hash(&self, into: &mut Sha256) {
        let (tag, bytes): (u8, &[u8]) = match self {
            Self::Null => (0, &[]),
            Self::Int(value) => (1, &value.to_be_bytes()),
            Self::Text(text) => (2, text.as_bytes()),
            Self::Bytes(bytes) => (3, bytes),
        };
        into.update([tag]);
        into.update((bytes.len() as u64).to_be_bytes());
        into.update(bytes);
    }

    /// As an argument for a column; `None` for a NULL, which is written into the statement.
    fn value(&self, kind: Kind) -> Option<Value> {
        match self {
            Self::Null => None,
            Self::Int(value) if kind == Kind::Bool => Some(Value::Bool(*value != 0)),
            Self::Int(value) => Some(Value::from(*value)),
            Self::Text(text) => Some(Value::from(text.as_str())),
            Self::Bytes(bytes) => Some(Value::Bytes(bytes.clone().into())),
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    pub(crate) async fn all(link: &mut Link<'_>) -> Result<Vec<Self>> {
        let mut tables = Vec::new();
        for row in link.all(&TABLES, args![]).await? {
            let name = row.text("name")?;
            let (mut columns, mut key) = (Vec::new(), Vec::new());
            for (at, row) in link.all(&COLUMNS, args![name.as_str()]).await?.iter().enumerate() {
                let kind = match row.text("type")?.to_ascii_lowercase().as_str() {
                    "bigint" | "integer" => Kind::Int,
                    "boolean" => Kind::Bool,
                    "text" => Kind::Text,
                    "bytea" | "blob" => Kind::Bytes,
                    other => return Err(Error::corrupt(format!("database: {name} has a column of type {other}"))),
                };
                let place = row.int("place")?;
                if place > 0 {
                    key.push((place, at));
                }
                let name = row.text("name")?;
                columns.push(Column { name, kind });
            }
            key.sort_unstable();
            if let Some((_, wanted)) = KEYS.iter().find(|(table, _)| *table == name) {
                let at = |wanted: &str| columns.iter().position(|column: &Column| column.name == wanted);
                key = (0..).zip(wanted.iter().filter_map(|wanted| at(wanted))).collect();
            }
            if key.is_empty() {
                return Err(Error::corrupt(format!("database: {name} has no primary key")));
            }
            let key = key.into_iter().map(|(_, at)| at).collect();
            tables.push(Self { name, columns, key });
        }
        Ok(tables)
    }

    pub(crate) fn quoted(&self) -> String {
        quoted(&self.name)
    }

    fn page_rows(&self) -> usize {
        let big = self.columns.iter().any(|column| column.kind == Kind::Bytes);
        if big { BIG_PAGE_ROWS } else { PAGE_ROWS }
    }

    /// Whether two databases have the same tables with the same columns.
    pub(crate) fn alike(some: &[Self], others: &[Self]) -> bool {
        let shape = |tables: &[Self]| -> Vec<(String, Vec<String>)> {
            let names = |table: &Self| table.columns.iter().map(|column| column.name.clone()).collect();
            tables.iter().map(|table| (table.name.clone(), names(table))).collect()
        };
        shape(some) == shape(others)
    }

    fn names(&self, which: impl Iterator<Item = usize>) -> String {
        let names: Vec<_> = which.map(|at| quoted(&self.columns[at].name)).collect();
        names.join(", ")
    }

    /// The order that both engines agree on: texts by bytes.
    fn order(&self, engine: Engine, direction: &str) -> String {
        let parts: Vec<_> = self.key.iter().map(|at| self.sorted(*at, engine) + direction).collect();
        parts.join(", ")
    }

    fn sorted(&self, at: usize, engine: Engine) -> String {
        let column = &self.columns[at];
        match (column.kind, engine) {
            (Kind::Text, Engine::Postgres) => format!("{} COLLATE \"C\"", quoted(&column.name)),
            _ => quoted(&column.name),
        }
    }

    fn cells(&self, row: &Row) -> Result<Vec<Cell>> {
        let cell = |column: &Column| {
            let name = column.name.as_str();
            Ok(match column.kind {
                Kind::Int => row.maybe_int(name)?.map_or(Cell::Null, Cell::Int),
                Kind::Bool => row
                    .maybe_bool(name)?
                    .map_or(Cell::Null, |value| Cell::Int(value.into())),
                Kind::Text => row.maybe_text(name)?.map_or(Cell::Null, Cell::Text),
                Kind::Bytes => row.maybe_bytes(name)?.map_or(Cell::Null, Cell::Bytes),
            })
        };
        self.columns.iter().map(cell).collect()
    }

    /// The rows after a key. The primary key's index.
    pub(crate) async fn page(&self, link: &mut Link<'_>, after: Option<&[Cell]>) -> Result<Vec<Vec<Cell>>> {
        let engine = link.engine();
        let mut arguments = Vec::new();
        let mut condition = String::new();
        if let Some(after) = after {
            let keys: Vec<_> = self.key.iter().map(|at| self.sorted(*at, engine)).collect();
            let mut given = Vec::new();
            for at in &self.key {
                let Some(value) = after[*at].value(self.columns[*at].kind) else {
                    return Err(Error::corrupt(format!(
                        "database: {} has a key without a value",
                        self.name
                    )));
                };
                arguments.push(value);
                given.push(format!("${}", arguments.len()));
            }
            condition = format!(" WHERE ({}) > ({})", keys.join(", "), given.join(", "));
        }
        let text = format!(
            "SELECT {} FROM {}{condition} ORDER BY {} LIMIT {}",
            self.names(0..self.columns.len()),
            quoted(&self.name),
            self.order(engine, ""),
            self.page_rows()
        );
        let rows = link.all_of(text, arguments).await?;
        rows.iter().map(|row| self.cells(row)).collect()
    }

    /// The row with the greatest key. The primary key's index.
    async fn last(&self, link: &mut Link<'_>) -> Result<Option<Vec<Cell>>> {
        let text = format!(
            "SELECT {} FROM {} ORDER BY {} LIMIT 1",
            self.names(0..self.columns.len()),
            quoted(&self.name),
            self.order(link.engine(), " DESC")
        );
        let rows = link.all_of(text, Vec::new()).await?;
        rows.first().map(|row| self.cells(row)).transpose()
    }

    pub(crate) async fn insert(&self, link: &mut Link<'_>, rows: &[Vec<Cell>]) -> Result<()> {
        let overriding = match link.engine() {
            Engine::Postgres => " OVERRIDING SYSTEM VALUE",
            Engine::Sqlite => "",
        };
        let (mut values, mut arguments) = (Vec::new(), Vec::new());
        for row in rows {
            let cells = row
                .iter()
                .zip(&self.columns)
                .map(|(cell, column)| match cell.value(column.kind) {
                    None => "NULL".to_owned(),
                    Some(value) => {
                        arguments.push(value);
                        format!("${}", arguments.len())
                    }
                });
            values.push(format!("({})", cells.collect::<Vec<_>>().join(", ")));
        }
        let text = format!(
            "INSERT INTO {} ({}){overriding} VALUES {}",
            quoted(&self.name),
            self.names(0..self.columns.len()),
            values.join(", ")
        );
        link.all_of(text, arguments).await.map(drop)
    }

    async fn count(&self, link: &mut Link<'_>) -> Result<u64> {
        let text = format!("SELECT count(*) AS total FROM {}", quoted(&self.name));
        match link.all_of(text, Vec::new()).await?.first() {
            Some(row) => row.count("total"),
            None => Ok(0),
        }
    }
}

impl SqlStorage {
    /// Every table and how many rows it has, in the order in which they are copied.
    pub async fn tables(&self) -> Result<Vec<(String, u64)>> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let mut counted = Vec::new();
        for table in Table::all(&mut link).await? {
            let rows = table.count(&mut link).await?;
            counted.push((table.name, rows));
        }
        Ok(counted)
    }

    /// `Ok` when this database can be copied into `target` now: both have this binary's schema, no server
    /// holds anything here, and the target is empty or an earlier copy into it did not end. Changes nothing.
    ///
    /// Errors: `Conflict` when a server works, `AlreadyExists` when the target has rows, `Invalid` when the
    /// schemas differ, and those of [`SqlStorage::check`].
    pub async fn can_copy_to(&self, target: &Self, now: Timestamp) -> Result<()> {
        self.check().await?;
        target.check_schema().await?;
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let held = link.one(&HELD, args![now]).await?.int("held")?;
        if held > 0 {
            return Err(Error::conflict(format!(
                "database: a server works on the source ({held} leases are held); stop it, and wait a minute for \
                 one that crashed"
            )));
        }
        let ours = Table::all(&mut link).await?;
        let mut reader = target.database.read().await?;
        let mut link = reader.link();
        let theirs = Table::all(&mut link).await?;
        if !Table::alike(&ours, &theirs) {
            return Err(Error::invalid(
                "to",
                "the target has other tables or columns than the source; migrate both with this version",
            ));
        }
        if !is_marked(&mut link).await? {
            for table in &theirs {
                if table.last(&mut link).await?.is_some() {
                    return Err(Error::new(
                        dbtcloud_core::ErrorKind::AlreadyExists,
                        format!(
                            "database: the target has rows in {}; copy into an empty database",
                            table.name
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Copies everything into `target` and compares: on `Ok` both have the same rows, told per table, and the
    /// target's counters stand behind them. Nothing is changed here.
    ///
    /// A second call after one that was interrupted goes on where that one stood. The caller keeps servers
    /// away meanwhile. `told` is called after each page, with the table and the rows copied of it so far.
    ///
    /// Errors: those of [`SqlStorage::can_copy_to`]; `Corrupt` when the two differ at the end.
    pub async fn copy_to(&self, target: &Self, now: Timestamp, mut told: impl FnMut(&str, u64)) -> Result<Vec<Copied>> {
        self.can_copy_to(target, now).await?;
        target.begin_copy().await?;
        for month in self.months().await? {
            target.make_room(month).await?;
        }
        let mut reader = self.database.read().await?;
        let mut from = reader.link();
        let tables = Table::all(&mut from).await?;
        let theirs = Table::all(&mut target.database.read().await?.link()).await?;
        for (ours, theirs) in tables.iter().zip(&theirs) {
            let mut rows = 0;
            let mut work = target.database.begin().await?;
            let last = theirs.last(&mut work.link()).await;
            let mut after = work.end("look_copy", last).await?;
            loop {
                let page = ours.page(&mut from, after.as_deref()).await?;
                let Some(last) = page.last() else { break };
                let mut work = target.database.begin().await?;
                let done = theirs.insert(&mut work.link(), &page).await;
                work.end("copy_page", done).await?;
                rows += page.len() as u64;
                told(&ours.name, rows);
                after = Some(last.clone());
            }
        }
        let last_run = from.one(&LAST_RUN, args![]).await?.int("last")?;
        let copied = self.digests().await?;
        if target.digests().await? != copied {
            return Err(Error::corrupt(
                "database: the copy differs from the source; drop the target and copy again while no server runs",
            ));
        }
        let mut work = target.database.begin().await?;
        let mut link = work.link();
        let done: Result<_> = async {
            for table in &theirs {
                set_counter(&mut link, table).await?;
            }
            link.all(&SET_LAST_RUN, args![last_run]).await?;
            link.execute(&UNMARK, args![]).await.map(drop)
        }
        .await;
        work.end("end_copy", done).await?;
        Ok(copied)
    }

    /// Says that what this database gets is not whole yet: until a copy into it has ended, no server works with it.
    /// A second call changes nothing.
    pub async fn begin_copy(&self) -> Result<()> {
        let mut work = self.database.begin().await?;
        let mut link = work.link();
        let done = async {
            if !is_marked(&mut link).await? {
                link.execute(&MARK, args![]).await?;
            }
            Ok(())
        }
        .await;
        work.end("mark_copy", done).await
    }

    /// Whether a copy into this database has begun and not ended.
    pub async fn is_half_copied(&self) -> Result<bool> {
        let mut reader = self.database.read().await?;
        is_marked(&mut reader.link()).await
    }

    /// Count and checksum of every table.
    pub async fn digests(&self) -> Result<Vec<Copied>> {
        let mut reader = self.database.read().await?;
        let mut link = reader.link();
        let mut all = Vec::new();
        for table in Table::all(&mut link).await? {
            let (mut rows, mut digest, mut after) = (0, Sha256::new(), None);
            loop {
                let page = table.page(&mut link, after.as_deref()).await?;
                page.iter().flatten().for_each(|cell| cell.hash(&mut digest));
                rows += page.len() as u64;
                match page.into_iter().next_back() {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
            all.push(Copied::new(table.name, rows, digest));
        }
        Ok(all)
    }
}

async fn is_marked(link: &mut Link<'_>) -> Result<bool> {
    Ok(link.one(&MARKED, args![]).await?.int("present")? > 0)
}

/// Lets a table's own counter go on behind its greatest id. SQLite's does so by itself.
async fn set_counter(link: &mut Link<'_>, table: &Table) -> Result<()> {
    let counted = table.columns.iter().any(|column| column.name == "id");
    if link.engine() == Engine::Sqlite || !counted {
        return Ok(());
    }
    let name = quoted(&table.name);
    let text = format!(
        "SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT max(id) FROM {name})) \
         WHERE EXISTS (SELECT 1 FROM {name})"
    );
    link.all_of(text, Vec::new()).await.map(drop)
}
