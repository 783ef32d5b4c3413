//! `source = "sql"`: a query on a catalog database.
//!
//! The query gives `id` and any of `schema`, `database`, `url`, `server`, `isolation` and `labels`, of whatever type:
//! an id may be a text, a number or a uuid; labels are a JSON object or an hstore. Other columns are ignored, because
//! `select *` on a catalog may well bring a password along, which no label may be. As in a file, the case of a column's
//! name does not count. What is absent is null: an empty schema is an error, not a tenant that is a whole database.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Column, Row, TypeInfo, ValueRef, postgres::PgRow};

use super::{
    Listed, TenantSource, TenantSourceError,
    catalog::{self, CatalogError},
    field_of, labels_of_object,
};
use crate::{config::SqlSourceConfig, database_url::DatabaseUrl};

/// Runs the query.
pub struct SqlSource {
    url: DatabaseUrl,
    query: String,
    name: String,
}

impl SqlSource {
    /// Checks the config. Connects to nothing.
    ///
    /// # Errors
    /// The URL is none, or there is no query.
    pub fn new(config: &SqlSourceConfig) -> Result<Self, TenantSourceError> {
        let url = super::url_in_config(&config.url)?;
        if config.query.trim().is_empty() {
            return Err(TenantSourceError::Config("`query` is empty".into()));
        }
        Ok(Self {
            name: format!("the query on {url}"),
            query: config.query.clone(),
            url,
        })
    }

    /// As text, in the simple protocol: that gives every type in the form in which psql shows it.
    async fn run(&self, query: String) -> Result<Vec<PgRow>, CatalogError> {
        catalog::fetch(&self.url, sqlx::raw_sql(AssertSqlSafe(query))).await
    }

    fn read(&self, rows: &[PgRow]) -> Result<Vec<Listed>, TenantSourceError> {
        let invalid = |message: String| TenantSourceError::Invalid {
            source_name: self.name.clone(),
            message,
        };
        if let Some(row) = rows.first() {
            check_columns(row).map_err(invalid)?;
            if rows.iter().any(|other| !names(other).eq(names(row))) {
                return Err(invalid("the query is more than one statement".into()));
            }
        }
        let read =
            |(i, row): (usize, &PgRow)| listed(row).map_err(|e| invalid(format!("row {}: {e}", i + 1)));
        rows.iter().enumerate().map(read).collect()
    }
}

#[async_trait]
impl TenantSource for SqlSource {
    async fn list(&self) -> Result<Vec<Listed>, TenantSourceError> {
        let rows = self.run(self.query.clone()).await;
        self.read(&rows.map_err(|e| e.into_source_error(&self.name))?)
    }

    /// Asks for the one row, so that the catalog can use an index on its id. A query that cannot stand in a
    /// subquery, or an id that is none of the column's type, costs a whole list.
    async fn find(&self, id: &str) -> Result<Option<Listed>, TenantSourceError> {
        let of_id = |rows: Vec<Listed>| rows.into_iter().find(|t| t.id == id);
        match self.run(query_for(&self.query, id)).await {
            Ok(rows) => Ok(of_id(self.read(&rows)?)),
            Err(CatalogError::Refused(_)) => Ok(of_id(self.list().await?)),
            Err(error) => Err(error.into_source_error(&self.name)),
        }
    }
}

/// The query, for one id. The literal has no type of its own, so it takes that of the column. It ends where a quote
/// stands alone, and nowhere else: `standard_conforming_strings` is on.
fn query_for(query: &str, id: &str) -> String {
    let query = query.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
    let id = id.replace('\0', "").replace('\'', "''");
    // The line breaks keep a comment at the query's end from swallowing ours.
    format!("select * from (\n{query}\n) as tenants where tenants.id = '{id}'")
}

fn names(row: &PgRow) -> impl Iterator<Item = &str> {
    row.columns().iter().map(Column::name)
}

fn check_columns(row: &PgRow) -> Result<(), String> {
    let names: Vec<&str> = names(row).collect();
    let mut fields: Vec<&str> = names.iter().filter_map(|name| field_of(name)).collect();
    fields.sort_unstable();
    if let Some(twice) = fields.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!(
            "the query gives the column `{}` more than once",
            twice[0]
        ));
    }
    match fields.contains(&"id") {
        true => Ok(()),
        false => Err(format!(
            "the query gives no column `id`; it gives: {}",
            names.join(", ")
        )),
    }
}

fn listed(row: &PgRow) -> Result<Listed, String> {
    let mut listed = Listed::default();
    let mut complaint = None;
    for column in row.columns() {
        let value = row.try_get_raw(column.ordinal()).map_err(|e| e.to_string())?;
        let Some(field) = field_of(column.name()).filter(|_| !value.is_null()) else {
            continue;
        };
        let text = value
            .as_str()
            .map_err(|e| format!("column `{}` is not UTF-8: {e}", column.name()))?;
        // The blanks that fill up a char(n) are none of its value.
        let text = match column.type_info().name() {
            "CHAR" => text.trim_end_matches(' '),
            _ => text,
        };
        let set = match field {
            "labels" => labels(text).map(|labels| listed.labels = labels),
            field => listed.set(field, text.to_owned()).map(drop),
        };
        complaint = complaint.or(set.err());
    }
    if listed.id.is_empty() {
        return Err("`id` is null or empty".into());
    }
    listed.fault = complaint;
    Ok(listed)
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let wrong = || "`labels` is neither a JSON object nor an hstore".to_owned();
    if text.trim_start().starts_with('"') || text.trim().is_empty() {
        return hstore(text).ok_or_else(wrong);
    }
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(object)) => labels_of_object(object),
        Ok(serde_json::Value::Null) => Ok(BTreeMap::new()),
        _ => Err(wrong()),
    }
}

/// Reads `"key"=>"value", "other"=>NULL`.
fn hstore(text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        rest = after.trim_start().strip_prefix("=>")?.trim_start();
        match rest.strip_prefix("NULL") {
            Some(after) => rest = after,
            None => {
                let (value, after) = quoted(rest)?;
                labels.insert(key, value);
                rest = after;
            }
        }
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start();
        } else if !rest.is_empty() {
            return None;
        }
    }
    Some(labels)
}

/// A text in double quotes, in which a backslash stands before what is meant as it is; and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[i + 1..])),
            '\\' => out.push(chars.next()?.1),
            _ => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<String, String> {
        let labels = labels(text)?;
        let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        Ok(pairs.join("|"))
    }

    #[test]
    fn labels_come_as_json_or_hstore() {
        assert_eq!(
            pairs(r#"{"plan": "pro", "seats": 5, "beta": true, "none": null}"#).as_deref(),
            Ok("beta=true|plan=pro|seats=5")
        );
        assert_eq!(
            pairs(r#""a"=>"1, \"x\" \\", "b"=>NULL, "c"=>"""#).as_deref(),
            Ok(r#"a=1, "x" \|c="#)
        );
        assert_eq!(pairs("").as_deref(), Ok(""));
        assert_eq!(pairs("null").as_deref(), Ok(""));
        for wrong in ["[1]", "x", r#""a"=>"#, r#""a"=>"1" "b"=>"2""#, r#"{"a": [1]}"#] {
            assert!(pairs(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_id_stays_inside_its_quotes() {
        assert_eq!(
            query_for("select id from t -- all\n; \n", "x'; drop table t; --\\"),
            "select * from (\nselect id from t -- all\n) as tenants where tenants.id = 'x''; drop table t; --\\'"
        );
    }
}
