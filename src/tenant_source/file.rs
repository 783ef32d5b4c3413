//! `source = "file"`: a CSV, JSON, YAML or TOML file.
//!
//! CSV has a header. JSON and YAML hold a list, or an object with the list under `tenants`; TOML holds `[[tenants]]`.
//! An entry gives `id` and any of `schema`, `database`, `url`, `server`, `isolation` and `labels`; whatever else it
//! gives is a label. A bare text or number in a list is the name of a schema, and the tenant's id. What is empty is
//! absent, and blanks around a value do not count.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use async_trait::async_trait;
use serde_json::{Map, Value};

use super::{Listed, TenantSource, TenantSourceError, field_of, labels_of_object};
use crate::config::FileConfig;
use crate::locked::locked;

/// Reads the file.
pub struct FileSource {
    path: PathBuf,
    format: Format,
    /// What was read last. Each attempt asks for its tenant anew, and a file of 100,000 takes its time to parse.
    last: Mutex<Option<Reading>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv,
    Json,
    Yaml,
    Toml,
}

/// The content of the file when it had this time and length.
#[derive(Clone)]
struct Reading {
    stamp: (SystemTime, u64),
    listed: Arc<Vec<Listed>>,
}

impl FileSource {
    /// Checks the config. Reads nothing.
    ///
    /// # Errors
    /// The format is unknown.
    pub fn new(config: &FileConfig) -> Result<Self, TenantSourceError> {
        Ok(Self {
            path: config.path.clone(),
            format: Format::of(config)?,
            last: Mutex::default(),
        })
    }

    fn name(&self) -> String {
        format!("file {}", self.path.display())
    }

    /// The file's content, from memory where the file has not changed.
    async fn read(&self) -> Result<Arc<Vec<Listed>>, TenantSourceError> {
        let unreadable = |e: std::io::Error| TenantSourceError::Unreadable {
            source_name: self.name(),
            message: e.to_string(),
            is_full: false,
        };
        let metadata = tokio::fs::metadata(&self.path).await.map_err(unreadable)?;
        let stamp = (metadata.modified().map_err(unreadable)?, metadata.len());
        let last = locked(&self.last).clone();
        if let Some(last) = last
            && last.stamp == stamp
        {
            return Ok(last.listed);
        }
        let bytes = tokio::fs::read(&self.path).await.map_err(unreadable)?;
        let listed = parse(self.format, &bytes).map_err(|message| TenantSourceError::Invalid {
            source_name: self.name(),
            message,
        })?;
        let listed = Arc::new(listed);
        *locked(&self.last) = Some(Reading {
            stamp,
            listed: Arc::clone(&listed),
        });
        Ok(listed)
    }
}

#[async_trait]
impl TenantSource for FileSource {
    async fn list(&self) -> Result<Vec<Listed>, TenantSourceError> {
        Ok(self.read().await?.to_vec())
    }

    async fn find(&self, id: &str) -> Result<Option<Listed>, TenantSourceError> {
        Ok(self.read().await?.iter().find(|t| t.id == id).cloned())
    }
}

impl Format {
    fn of(config: &FileConfig) -> Result<Self, TenantSourceError> {
        let ending = Path::extension(&config.path).map(|e| e.to_string_lossy().to_ascii_lowercase());
        match config.format.clone().or(ending).as_deref() {
            Some("csv") => Ok(Self::Csv),
            Some("json") => Ok(Self::Json),
            Some("yaml" | "yml") => Ok(Self::Yaml),
            Some("toml") => Ok(Self::Toml),
            Some(other) if config.format.is_some() => Err(TenantSourceError::Config(format!(
                "`format` is csv, json, yaml or toml, not `{other}`"
            ))),
            _ => Err(TenantSourceError::Config(format!(
                "the extension of {} is not a known format: add `format = \"csv\"`, or json, yaml or toml",
                config.path.display()
            ))),
        }
    }
}

fn parse(format: Format, bytes: &[u8]) -> Result<Vec<Listed>, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!("line {}: not UTF-8", line_of(&bytes[..e.valid_up_to()])))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Csv => from_csv(text),
        Format::Json => from_value(serde_json::from_str(text).map_err(|e| e.to_string())?),
        Format::Yaml => from_value(yaml(text)?),
        Format::Toml => from_value(toml(text)?),
    }
}

/// The number of the line that comes after these bytes.
fn line_of(before: &[u8]) -> usize {
    before.iter().filter(|b| **b == b'\n').count() + 1
}

fn from_csv(text: &str) -> Result<Vec<Listed>, String> {
    // Rows may be of unequal length for the parser, so that the complaint is ours and names no content.
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|e| e.to_string())?.clone();
    for (i, name) in headers.iter().enumerate() {
        if name.is_empty() {
            return Err(format!("line 1: column {} has no name", i + 1));
        }
        if headers.iter().take(i).any(|n| n.eq_ignore_ascii_case(name)) {
            return Err(format!("line 1: column `{name}` appears twice"));
        }
    }
    if !headers.iter().any(|name| field_of(name) == Some("id")) {
        let names: Vec<&str> = headers.iter().collect();
        return Err(format!(
            "line 1: there is no column `id`, but: {}",
            names.join(", ")
        ));
    }
    let mut listed = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| e.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        listed.push(from_record(&headers, &record).map_err(|e| format!("line {line}: {e}"))?);
    }
    Ok(listed)
}

fn from_record(headers: &csv::StringRecord, record: &csv::StringRecord) -> Result<Listed, String> {
    if record.len() != headers.len() {
        return Err(format!(
            "{} values under {} column names",
            record.len(),
            headers.len()
        ));
    }
    let mut object = Map::new();
    for (name, value) in headers.iter().zip(record).filter(|(_, value)| !value.is_empty()) {
        let value = match field_of(name) {
            Some("labels") => serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)),
            _ => Value::from(value),
        };
        object.insert(name.to_owned(), value);
    }
    from_object(object)
}

fn yaml(text: &str) -> Result<Value, String> {
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    value.apply_merge().map_err(|e| e.to_string())?;
    serde_yaml_ng::from_value(value).map_err(|e| e.to_string())
}

fn toml(text: &str) -> Result<Value, String> {
    let value: toml::Value = toml::from_str(text).map_err(|e| {
        // Without the line itself, which the parser would print: a password may stand there.
        let start = e.span().map_or(0, |s| s.start.min(text.len()));
        format!("line {}: {}", line_of(&text.as_bytes()[..start]), e.message())
    })?;
    Ok(json_of(value))
}

/// TOML's value as JSON's. Dates and times, which JSON does not know, are texts.
fn json_of(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Datetime(moment) => moment.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(json_of).collect(),
        toml::Value::Table(table) => {
            let entries = table.into_iter().map(|(name, value)| (name, json_of(value)));
            Value::Object(entries.collect())
        }
    }
}

fn from_value(value: Value) -> Result<Vec<Listed>, String> {
    let entries = match value {
        Value::Array(entries) => entries,
        Value::Object(mut object) => match object.remove("tenants") {
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err("`tenants` is not a list".into()),
            None if object.is_empty() => Vec::new(),
            None => return Err("there is no list `tenants`".into()),
        },
        Value::Null => Vec::new(),
        _ => return Err("neither a list of tenants nor an object with a list `tenants`".into()),
    };
    let read = |(i, entry)| from_entry(entry).map_err(|e| format!("entry {}: {e}", i + 1));
    entries.into_iter().enumerate().map(read).collect()
}

fn from_entry(entry: Value) -> Result<Listed, String> {
    match entry {
        Value::Object(object) => from_object(object),
        Value::String(_) | Value::Number(_) => {
            let name = name_of("a bare entry", entry)?.ok_or("it is empty")?;
            Ok(Listed {
                id: name.clone(),
                schema: Some(name),
                ..Listed::default()
            })
        }
        _ => Err("neither an object nor the name of a schema".into()),
    }
}

fn from_object(object: Map<String, Value>) -> Result<Listed, String> {
    let mut listed = Listed::default();
    let mut complaint = None;
    let mut labels = Map::new();
    for (name, value) in object {
        let result = match (field_of(&name), value) {
            (_, Value::Null) => Ok(()),
            (Some("labels"), Value::Object(object)) => {
                labels.extend(object);
                Ok(())
            }
            (Some("labels"), _) => Err("`labels` is not an object".into()),
            (Some(field), value) => match name_of(field, value) {
                Ok(Some(value)) => listed.set(field, value).map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
            (None, value) => {
                // A list, say: it was not written to be a label, but it is one all the same.
                let value = match value {
                    Value::Array(_) | Value::Object(_) => value.to_string().into(),
                    value => value,
                };
                labels.insert(name, value);
                Ok(())
            }
        };
        complaint = complaint.or(result.err());
    }
    let labels = labels_of_object(labels);
    complaint = complaint.or(labels.as_ref().err().cloned());
    listed.labels = labels.unwrap_or_default();
    if listed.id.is_empty() {
        return Err(complaint.unwrap_or_else(|| "`id` is missing or empty".into()));
    }
    listed.fault = complaint;
    Ok(listed)
}

/// A name as text: a whole number counts as one. 1.10 and `true` do not: nobody can tell how they were written.
fn name_of(field: &str, value: Value) -> Result<Option<String>, String> {
    let text = match value {
        Value::String(text) => text,
        Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
        Value::Number(_) | Value::Bool(_) => {
            return Err(format!("`{field}` is not a text: put it in quotes"));
        }
        _ => return Err(format!("`{field}` is not a text")),
    };
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, text: &str) -> String {
        match parse(format, text.as_bytes()) {
            Ok(listed) => listed.iter().map(show).collect::<Vec<_>>().join("\n"),
            Err(error) => error,
        }
    }

    fn show(t: &Listed) -> String {
        let mut out = t.id.clone();
        let isolation = t.isolation.map(|i| i.to_string());
        let url = t.url.as_ref().map(|u| u.expose().to_owned());
        let fields = [
            ("schema", &t.schema),
            ("database", &t.database),
            ("server", &t.server),
            ("isolation", &isolation),
            ("url", &url),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                out += &format!(" {name}={value}");
            }
        }
        for (name, value) in &t.labels {
            out += &format!(" [{name}={value}]");
        }
        if let Some(fault) = &t.fault {
            out += &format!(": {fault}");
        }
        out
    }

    #[test]
    fn csv_is_read_as_spreadsheets_write_it() {
        let text = "\u{feff}ID, schema,isolation,plan,labels\r\n acme ,\"a \"\"b\"\" \" ,,pro,\"{\"\"eu\"\": true}\"\r\n7,,RLS,,\r\n\r\n";
        assert_eq!(
            read(Format::Csv, text),
            "acme schema=a \"b\" [eu=true] [plan=pro]\n7 isolation=shared"
        );
        assert_eq!(
            read(Format::Csv, "id;schema\na;b\n"),
            "line 1: there is no column `id`, but: id;schema"
        );
        assert_eq!(
            read(Format::Csv, "id,schema\na,b\nc\n"),
            "line 3: 1 values under 2 column names"
        );
        assert_eq!(
            read(Format::Csv, "id,schema\n ,b\n"),
            "line 2: `id` is missing or empty"
        );
        assert_eq!(
            read(Format::Csv, "id,isolation\nx,scheme\n"),
            "x: unknown isolation `scheme`: it is schema, database or shared"
        );
        assert_eq!(
            read(Format::Csv, "id,a,A\nx,1,2\n"),
            "line 1: column `A` appears twice"
        );
        assert_eq!(read(Format::Csv, ""), "line 1: there is no column `id`, but: ");
        assert_eq!(read(Format::Csv, "id\n"), "");
    }

    #[test]
    fn json_yaml_and_toml_say_the_same() {
        let expected = "acme schema=a server=eu [plan=pro]\n7 database=7\nbare schema=bare\n8 schema=8";
        let json = r#"[{"id": "acme", "schema": " a ", "server": "eu", "url": "", "labels": {"plan": "pro"}},
            {"id": 7, "database": 7, "schema": null}, "bare", 8]"#;
        assert_eq!(read(Format::Json, json), expected);
        assert_eq!(read(Format::Json, &format!("{{\"tenants\": {json}}}")), expected);
        let yaml = "base: &eu {server: eu}\ntenants:\n- <<: *eu\n  id: acme\n  schema: a\n  plan: pro\n- {id: 7, database: 7}\n- bare\n- 8\n";
        assert_eq!(read(Format::Yaml, yaml), expected);
        let toml = "[[tenants]]\nid = 'acme'\nschema = 'a'\nserver = 'eu'\nlabels = { plan = 'pro' }\n[[tenants]]\nid = 7\ndatabase = 7";
        assert_eq!(
            read(Format::Toml, toml),
            expected.lines().take(2).collect::<Vec<_>>().join("\n")
        );
        for (format, text) in [(Format::Json, "[]"), (Format::Yaml, ""), (Format::Toml, "")] {
            assert_eq!(read(format, text), "");
        }
    }

    #[test]
    fn complaints_name_the_entry_and_hide_what_stands_there() {
        for (format, text, expected) in [
            (
                Format::Json,
                "[{\"id\": \"a\"}, {\"schema\": \"x\"}]",
                "entry 2: `id` is missing or empty",
            ),
            (
                Format::Json,
                "[{\"id\": 1.5}]",
                "entry 1: `id` is not a text: put it in quotes",
            ),
            (
                Format::Yaml,
                "- id: yes it is\n- id: true\n",
                "entry 2: `id` is not a text: put it in quotes",
            ),
            (
                Format::Json,
                "[{\"id\": \"a\", \"schema\": [1]}]",
                "a: `schema` is not a text",
            ),
            (
                Format::Json,
                "[{\"id\": \"a\", \"labels\": {\"x\": {\"y\": 1}}}]",
                "a: label `x` is not a text",
            ),
            (
                Format::Json,
                "[[1]]",
                "entry 1: neither an object nor the name of a schema",
            ),
            (Format::Json, "{\"tenant\": []}", "there is no list `tenants`"),
            (Format::Json, "{\"tenants\": {}}", "`tenants` is not a list"),
            (
                Format::Json,
                "[\n{\"url\": \"hunter2\"\n",
                "EOF while parsing an object at line 3 column 0",
            ),
            (
                Format::Toml,
                "[[tenants]]\nid = 'a'\nurl = 'hunter2",
                "line 3: invalid literal string, expected `'`",
            ),
        ] {
            assert_eq!(read(format, text), expected, "{text}");
        }
        assert_eq!(
            parse(Format::Csv, b"id\na\n\xff\n").map(|l| l.len()),
            Err("line 3: not UTF-8".into())
        );
        let yaml = read(Format::Yaml, "- id: a\n  url: 'hunter2\n");
        assert!(yaml.contains("line 2") && !yaml.contains("hunter2"), "{yaml}");
    }

    #[test]
    fn whatever_else_an_entry_gives_is_a_label() {
        let json =
            r#"[{"id": 1, "schema": "t_a", "x": [1, "b c"], "y": {"z": null}, "n": 1.50, "none": null}]"#;
        let seen = "1 schema=t_a [n=1.5] [x=[1,\"b c\"]] [y={\"z\":null}]";
        assert_eq!(read(Format::Json, json), seen);
        let yaml = "- id: 1\n  schema: t_a\n  x: [1, b c]\n  y: {z: null}\n  n: 1.50\n";
        assert_eq!(read(Format::Yaml, yaml), seen);
        let toml = "[[tenants]]\nid = 1\nschema = 't_a'\nsince = 2024-05-01T10:00:00Z\ndays = [2024-05-01]\n\
                    labels = { due = 2024-05-02 }\n";
        assert_eq!(
            read(Format::Toml, toml),
            "1 schema=t_a [days=[\"2024-05-01\"]] [due=2024-05-02] [since=2024-05-01T10:00:00Z]"
        );
    }

    #[tokio::test]
    async fn the_file_is_read_anew_when_it_changes() {
        let directory = tempfile::tempdir().expect("a folder");
        let path = directory.path().join("tenants.json");
        let config = FileConfig {
            path: path.clone(),
            format: None,
        };
        let source = FileSource::new(&config).expect("a source");
        let error = source.list().await.expect_err("there is none").to_string();
        assert!(error.contains("tenants.json: No such file"), "{error}");
        std::fs::write(&path, "[\"a\", \"b\"]").expect("a file");
        assert_eq!(source.list().await.expect("a list").len(), 2);
        assert!(source.find("b").await.expect("a list").is_some());
        std::fs::write(&path, "[\"a\"]").expect("a file");
        assert!(source.find("b").await.expect("a list").is_none());
        std::fs::write(&path, "[{}]").expect("a file");
        let error = source.list().await.expect_err("it is wrong").to_string();
        assert!(
            error.ends_with("tenants.json are wrong: entry 1: `id` is missing or empty"),
            "{error}"
        );
    }

    #[test]
    fn the_ending_tells_the_format() {
        let format = |path: &str, format: Option<&str>| {
            let config = FileConfig {
                path: path.into(),
                format: format.map(str::to_owned),
            };
            Format::of(&config).map_err(|e| e.to_string())
        };
        assert_eq!(format("t.YML", None), Ok(Format::Yaml));
        assert_eq!(format("t.txt", Some("csv")), Ok(Format::Csv));
        assert_eq!(
            format("t.txt", None),
            Err("[tenants] the extension of t.txt is not a known format: add `format = \"csv\"`, or json, yaml or toml".into())
        );
        assert_eq!(
            format("t", Some("jsno")),
            Err("[tenants] `format` is csv, json, yaml or toml, not `jsno`".into())
        );
    }
}
