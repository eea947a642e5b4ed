//! Queries.

use keymeld_core::record::{Family, LoadError, Query, RecordKey, Row, RowKey};
use rusqlite::types::Type;
use rusqlite::{Connection, Error, Params, params};

use crate::{Failure, Operation, Store};

const ROWS_OF_RECORD: &str = "
SELECT family, id, part, version, body FROM rows WHERE family = ?1 AND id = ?2 ORDER BY part";
const OPEN_HEADS: &str = "
SELECT family, id, part, version, body FROM rows
WHERE open = 1 AND (family, id) > (?1, ?2) ORDER BY family, id LIMIT ?3";

impl Store {
    /// The rows that `query` asks for, by key. A record that does not exist has none.
    ///
    /// A page of [`Query::Open`] with fewer than `count_max` rows is the last.
    ///
    /// # Errors
    /// [`LoadError`] where SQLite fails or a row is not one that this adapter writes;
    /// [`take_failure`](Store::take_failure) then tells why.
    pub fn load(&mut self, query: &Query) -> Result<Vec<Row>, LoadError> {
        rows(&self.connection, query).map_err(|error| {
            self.failure = Some(Failure::new(Operation::Load, error));
            LoadError
        })
    }
}

fn rows(connection: &Connection, query: &Query) -> Result<Vec<Row>, Error> {
    match query {
        Query::Record(RecordKey { family, id }) => {
            collect(connection, ROWS_OF_RECORD, params![*family as u8, id])
        }
        Query::Open { after: Some(RecordKey { family, id }), count_max } => {
            collect(connection, OPEN_HEADS, params![*family as u8, id, count_max])
        }
        // No family has the number 0, so this is before all.
        Query::Open { after: None, count_max } => {
            collect(connection, OPEN_HEADS, params![0_u8, [0_u8; 16], count_max])
        }
    }
}

fn collect(connection: &Connection, sql: &str, params: impl Params) -> Result<Vec<Row>, Error> {
    connection.prepare_cached(sql)?.query_map(params, row)?.collect()
}

fn row(columns: &rusqlite::Row<'_>) -> Result<Row, Error> {
    let number: u8 = columns.get(0)?;
    let family = Family::from_number(number).ok_or(Error::IntegralValueOutOfRange(0, i64::from(number)))?;
    let version: i64 = columns.get(3)?;
    Ok(Row {
        key: RowKey { record: RecordKey { family, id: columns.get(1)? }, part: columns.get(2)? },
        version: u64::try_from(version).map_err(|_| Error::IntegralValueOutOfRange(3, version))?,
        body: columns
            .get_ref(4)?
            .as_blob()
            .map_err(|error| Error::FromSqlConversionFailure(4, Type::Blob, Box::new(error)))?
            .to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use rusqlite::types::Null;

    use super::{OPEN_HEADS, ROWS_OF_RECORD};
    use crate::schema;

    #[test]
    fn queries_search_an_index_and_sort_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, schema::MIGRATIONS).unwrap();
        let plan = |sql: &str| -> String {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let count = statement.parameter_count();
            let nulls = rusqlite::params_from_iter((0..count).map(|_| Null));
            let rows = statement.query_map(nulls, |row| row.get(3)).unwrap();
            rows.collect::<Result<Vec<String>, _>>().unwrap().join("; ")
        };
        assert_eq!(
            plan(ROWS_OF_RECORD),
            "SEARCH rows USING INDEX sqlite_autoindex_rows_1 (family=? AND id=?)"
        );
        assert_eq!(plan(OPEN_HEADS), "SEARCH rows USING INDEX open_heads ((family,id)>(?,?))");
    }
}
