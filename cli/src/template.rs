//! Docker's `--format`: a table, JSON, or a template of placeholders.
//!
//! Of Go's template language there are placeholders and nothing else: no functions, conditions or loops.

use std::collections::BTreeMap;

/// Longest template in bytes.
const MAX_TEMPLATE: usize = 4096;

/// What can be shown of a `T`.
pub(crate) struct Field<T> {
    /// As a placeholder names it.
    pub(crate) name: &'static str,
    /// Above its column.
    pub(crate) heading: &'static str,
    /// What is shown.
    pub(crate) value: fn(&T) -> String,
}

/// How rows are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The usual table.
    Table,
    /// An object a line, with every field as text.
    Json,
    /// Columns with a heading.
    Columns(Vec<Template>),
    /// A text for each row.
    Text(Template),
}

/// A template that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    /// No field is called so.
    #[error("there is no placeholder {{{{.{name}}}}}; there are: {known}")]
    Unknown {
        /// As it was typed.
        name: String,
        /// What there is.
        known: String,
    },
    /// More of Go's templates than there is here.
    #[error(
        "`{{{{{action}}}}}` is no placeholder, and nothing else is understood of templates; there are: {known}; for \
         JSON say json"
    )]
    Action {
        /// What stood between the braces.
        action: String,
        /// What there is.
        known: String,
    },
    /// Braces that do not end.
    #[error("a placeholder does not end; write it as {{{{.Name}}}}")]
    Unclosed,
    /// A row of a table is one line.
    #[error("a table has a line for each row; leave out \\n")]
    Lines,
    /// Nothing to show.
    #[error("it is empty; say table, json, or a template such as {{{{.Name}}}}")]
    Empty,
    /// Too long.
    #[error("it is longer than {MAX_TEMPLATE} bytes")]
    TooLong,
}

impl Format {
    /// Reads a format over these fields.
    pub(crate) fn parse<T>(text: &str, fields: &[Field<T>]) -> Result<Self, FormatError> {
        if text.len() > MAX_TEMPLATE {
            return Err(FormatError::TooLong);
        }
        let template = text.replace("\\t", "\t").replace("\\n", "\n");
        match template.split_once([' ', '\t']).unwrap_or((&template, "")) {
            ("table", "") => Ok(Self::Table),
            ("table", columns) if columns.contains('\n') => Err(FormatError::Lines),
            ("table", columns) => columns
                .split('\t')
                .map(|column| Template::parse(column, fields))
                .collect::<Result<_, _>>()
                .map(Self::Columns),
            ("json", "") => Ok(Self::Json),
            _ if template.trim().is_empty() => Err(FormatError::Empty),
            _ => Template::parse(&template, fields).map(Self::Text),
        }
    }
}

/// Text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// Which field.
    Field(usize),
}

impl Template {
    fn parse<T>(text: &str, fields: &[Field<T>]) -> Result<Self, FormatError> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, after) = after.split_once("}}").ok_or(FormatError::Unclosed)?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Field(field(action, fields)?));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The template with a row's values.
    pub(crate) fn filled<T>(&self, row: &T, fields: &[Field<T>]) -> String {
        self.with(|index| printable(&(fields[index].value)(row)))
    }

    /// The template with the headings of its fields.
    pub(crate) fn heading<T>(&self, fields: &[Field<T>]) -> String {
        self.with(|index| fields[index].heading.to_owned())
    }

    fn with(&self, value: impl Fn(usize) -> String) -> String {
        let filled = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Field(index) => value(*index),
        });
        filled.collect()
    }
}

/// A row as one line of JSON.
pub(crate) fn json_line<T>(row: &T, fields: &[Field<T>]) -> String {
    let object: BTreeMap<&str, String> =
        fields.iter().map(|field| (field.name, (field.value)(row))).collect();
    serde_json::to_string(&object).expect("a map of strings is JSON")
}

fn field<T>(action: &str, fields: &[Field<T>]) -> Result<usize, FormatError> {
    let known = || {
        let names = fields.iter().map(|field| format!("{{{{.{}}}}}", field.name));
        names.collect::<Vec<_>>().join(", ")
    };
    let shown = |text: &str| text.chars().take(64).collect::<String>().escape_debug().to_string();
    match action.trim().strip_prefix('.') {
        Some(name) if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric()) => fields
            .iter()
            .position(|field| field.name == name)
            .ok_or_else(|| FormatError::Unknown { name: shown(name), known: known() }),
        _ => Err(FormatError::Action { action: shown(action), known: known() }),
    }
}

/// Labels may hold what moves a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, &'static str);

    const FIELDS: [Field<Row>; 2] = [
        Field { name: "ID", heading: "NETWORK ID", value: |row| row.0.to_owned() },
        Field { name: "Name", heading: "NAME", value: |row| row.1.to_owned() },
    ];

    #[test]
    fn a_template_is_filled_with_the_fields_of_each_row() {
        let filled = |text: &str, row: &Row| match Format::parse(text, &FIELDS).unwrap() {
            Format::Text(template) => template.filled(row, &FIELDS),
            other => panic!("{other:?}"),
        };
        assert_eq!(filled("{{.Name}}", &("a1", "web")), "web");
        assert_eq!(filled("{{ .ID }}\\t<{{.Name}}>\\n}}", &("a1", "web")), "a1\t<web>\n}}");
        assert_eq!(filled("no placeholder", &("a1", "web")), "no placeholder");
        assert_eq!(filled("tables {{.ID}}", &("a1", "web")), "tables a1");
        assert_eq!(filled("{{.Name}}", &("", "a\u{1b}[2J\tb\u{e9}")), "a\\u{1b}[2J\\tb\u{e9}");
    }

    #[test]
    fn a_table_has_the_columns_of_its_template_and_their_headings() {
        let Format::Columns(columns) =
            Format::parse("table {{.Name}}\\t({{.ID}})", &FIELDS).unwrap()
        else {
            panic!("no columns")
        };
        let heading: Vec<_> = columns.iter().map(|column| column.heading(&FIELDS)).collect();
        assert_eq!(heading, ["NAME", "(NETWORK ID)"]);
        let row: Vec<_> = columns.iter().map(|it| it.filled(&("a1", "web"), &FIELDS)).collect();
        assert_eq!(row, ["web", "(a1)"]);
        assert_eq!(Format::parse("table", &FIELDS), Ok(Format::Table));
        assert_eq!(Format::parse("json", &FIELDS), Ok(Format::Json));
        assert_eq!(json_line(&("a1", "a\"b"), &FIELDS), r#"{"ID":"a1","Name":"a\"b"}"#);
    }

    #[test]
    fn what_is_no_placeholder_is_refused_with_those_there_are() {
        let refused = |text: &str| Format::parse(text, &FIELDS).unwrap_err().to_string();
        let unknown = refused("{{.Color}}");
        assert_eq!(unknown, "there is no placeholder {{.Color}}; there are: {{.ID}}, {{.Name}}");
        for more in [
            "{{json .}}",
            "{{range .}}",
            "{{.}}",
            "{{}}",
            "{{- .Name }}",
            "{{.Name | upper}}",
            "{{.Label \"tier\"}}",
            "{{if .Name}}x{{end}}",
            "{{ .Name.Length }}",
            "{{{.Name}}",
            "table {{.ID}}\\t{{json .}}",
        ] {
            let told = refused(more);
            assert!(
                told.contains("nothing else is understood") && told.contains("{{.ID}}"),
                "{told}"
            );
        }
        assert!(refused("{{.Name").contains("does not end"));
        assert!(refused("{{.Name}").contains("does not end"));
        assert!(refused("table {{.Name}}\\n").contains("\\n"));
        assert!(refused("").contains("empty") && refused(" ").contains("empty"));
        assert!(refused(&"x".repeat(5000)).contains("4096"));
        assert!(refused(&format!("{{{{.{}}}}}", "x".repeat(4000))).len() < 300);
    }
}
