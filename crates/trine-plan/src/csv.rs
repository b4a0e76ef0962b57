//! Comma-separated values with quoted fields (RFC 4180), columns by name.

use crate::PlanError;

/// A table of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    columns: Vec<String>,
    /// Fields, and the line where each row begins.
    pub(crate) rows: Vec<(usize, Vec<String>)>,
}

impl Table {
    /// Reads a table: a header, then rows of as many fields. Blank lines are skipped, line ends may be CRLF, a
    /// byte-order mark is ignored.
    pub(crate) fn parse(text: &str) -> Result<Self, PlanError> {
        let mut records = Reader { text: text.trim_start_matches('\u{feff}'), line: 1 };
        let Some((_, header)) = records.next_record()? else {
            return Err(PlanError::Csv { line: 1, why: "the file is empty".into() });
        };
        let columns: Vec<String> = header.iter().map(|name| name.trim().to_owned()).collect();
        let mut rows = Vec::new();
        while let Some((line, fields)) = records.next_record()? {
            if fields.len() != columns.len() {
                let why = format!("{} fields, the header has {}", fields.len(), columns.len());
                return Err(PlanError::Csv { line, why });
            }
            rows.push((line, fields));
        }
        Ok(Self { columns, rows })
    }

    /// Where a column stands.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }
}

struct Reader<'a> {
    text: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn next_record(&mut self) -> Result<Option<(usize, Vec<String>)>, PlanError> {
        loop {
            if self.text.is_empty() {
                return Ok(None);
            }
            let line = self.line;
            let fields = self.record()?;
            if fields != [""] {
                return Ok(Some((line, fields)));
            }
        }
    }

    /// One record, its line end included.
    fn record(&mut self) -> Result<Vec<String>, PlanError> {
        let start = self.line;
        let (mut fields, mut field) = (Vec::new(), String::new());
        let (mut quoted, mut used) = (false, self.text.len());
        let mut chars = self.text.char_indices().peekable();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' if quoted && chars.peek().is_some_and(|(_, next)| *next == '"') => {
                    chars.next();
                    field.push('"');
                }
                '"' if quoted => quoted = false,
                '"' if field.is_empty() => quoted = true,
                ',' if !quoted => fields.push(std::mem::take(&mut field)),
                '\r' if !quoted && chars.peek().is_some_and(|(_, next)| *next == '\n') => {}
                '\n' if !quoted => {
                    self.line += 1;
                    used = at + 1;
                    break;
                }
                other => {
                    self.line += usize::from(other == '\n');
                    field.push(other);
                }
            }
        }
        if quoted {
            let why = "a quoted field is never closed".into();
            return Err(PlanError::Csv { line: start, why });
        }
        fields.push(field);
        self.text = &self.text[used..];
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_commas_and_line_ends() {
        let text = "\u{feff}a,b\r\n1,\"x, \"\"y\"\"\nz\"\n\n2,\n";
        let table = Table::parse(text).unwrap();
        assert_eq!(table.column("b"), Some(1));
        let rows: Vec<(usize, [&str; 2])> = table
            .rows
            .iter()
            .map(|(line, row)| (*line, [row[0].as_str(), row[1].as_str()]))
            .collect();
        assert_eq!(rows, [(2, ["1", "x, \"y\"\nz"]), (5, ["2", ""])]);
        let short = Table::parse("a,b\n1\n").unwrap_err().to_string();
        assert!(short.contains("line 2") && short.contains("1 fields"), "{short}");
        assert!(Table::parse("a\n\"1\n").unwrap_err().to_string().contains("never closed"));
        assert!(Table::parse("").is_err());
    }
}
