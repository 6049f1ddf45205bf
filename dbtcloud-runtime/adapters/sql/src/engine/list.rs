use dbtcloud_core::Result;
use dbtcloud_core::page::{COUNT_LIMIT, Page, total};

use super::{Engine, Link, Row, Sql, Value};

/// Conditions of a list that depend on what was asked for. Every piece of text is a constant; what comes
/// from outside is an argument. Only the conditions that were asked for are there, so that each list gets
/// the index that suits it.
pub(crate) struct Conditions {
    engine: Engine,
    text: String,
    args: Vec<Value>,
}

impl Conditions {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            text: String::new(),
            args: Vec::new(),
        }
    }

    /// One more condition; `$$` in it stands for `value`.
    pub(crate) fn and(&mut self, condition: &Sql, value: impl Into<Value>) {
        self.args.push(value.into());
        self.text
            .push_str(if self.text.is_empty() { " WHERE " } else { " AND " });
        self.text.push_str(
            &condition
                .on(self.engine)
                .replace("$$", &format!("${}", self.args.len())),
        );
    }
}

/// One page of a table and the number of all rows that match ([`total`]), read by one statement at one instant.
pub(crate) async fn page(
    link: &mut Link<'_>,
    table: &'static str,
    columns: &'static str,
    conditions: Conditions,
    order: &'static str,
    page: Page,
) -> Result<(Vec<Row>, u64)> {
    let Conditions { text, mut args, .. } = conditions;
    let most = COUNT_LIMIT + 1;
    let count = format!("SELECT count(*) AS total FROM (SELECT 1 FROM {table}{text} LIMIT {most}) AS counted");
    let all = format!(
        "SELECT ({count}) AS total, {columns} FROM {table}{text} ORDER BY {order} LIMIT ${} OFFSET ${}",
        args.len() + 1,
        args.len() + 2
    );
    let conditions = args.clone();
    // One more than is shown tells whether there are more.
    let wanted = page.limit() as usize;
    args.push(Value::from(page.limit() + 1));
    args.push(Value::from(page.offset()));
    let mut rows = link.all_of(all, args).await?;
    let counted = match rows.first() {
        Some(row) => row.count("total")?,
        // Nothing on this page: beyond the end.
        None => match link.all_of(count, conditions).await?.first() {
            Some(row) => row.count("total")?,
            None => 0,
        },
    };
    let more = rows.len() > wanted;
    rows.truncate(wanted);
    let total = total(counted, page, rows.len(), more);
    Ok((rows, total))
}
