//! Files that hold text or tokens in a form that is not plain text: known by name and by first bytes.

/// A form of file that is never trained on as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// What a file of this form is called.
    pub(crate) what: &'static str,
    /// What follows the last full stop of its name, in lower case.
    suffixes: &'static [&'static str],
    /// Bytes that it begins with, and how far into the file they stand.
    marks: &'static [(usize, &'static [u8])],
    /// What a user may do instead.
    pub(crate) remedy: &'static str,
}

/// Bytes at the start of a file in which every mark stands.
pub(crate) const HEAD_BYTES: usize = 512;

const UNPACK: &str = "unpack it and give the text file or the folder";
const EXPORT: &str = "write its text column to a text file, or each text to a file of its own";
const AS_TEXT: &str = "save it as plain text";
const NUMBERS: &str = "give the text, or a folder that `trine data build` has made";

const JSON_LINES: Format = Format {
    what: "a file of JSON Lines",
    suffixes: &["jsonl", "ndjson", "jsonlines"],
    marks: &[],
    remedy: "write its texts out, such as by `jq -r .text FILE.jsonl > FILE.txt`",
};

const FORMATS: &[Format] = &[
    JSON_LINES,
    Format {
        what: "gzip-compressed",
        suffixes: &["gz", "tgz"],
        marks: &[(0, b"\x1f\x8b")],
        remedy: UNPACK,
    },
    Format {
        what: "Zstandard-compressed",
        suffixes: &["zst", "zstd", "tzst"],
        marks: &[(0, b"\x28\xb5\x2f\xfd")],
        remedy: UNPACK,
    },
    Format {
        what: "xz-compressed",
        suffixes: &["xz", "txz", "lzma"],
        marks: &[(0, b"\xfd7zXZ\0")],
        remedy: UNPACK,
    },
    Format {
        what: "bzip2-compressed",
        suffixes: &["bz2", "tbz2"],
        marks: &[(4, b"1AY&SY")],
        remedy: UNPACK,
    },
    Format {
        what: "LZ4-compressed",
        suffixes: &["lz4"],
        marks: &[(0, b"\x04\x22\x4d\x18")],
        remedy: UNPACK,
    },
    Format {
        what: "a document of an office program",
        suffixes: &["doc", "docx", "odt", "rtf", "xls", "xlsx", "ppt", "pptx", "epub"],
        marks: &[(0, b"{\\rtf"), (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")],
        remedy: AS_TEXT,
    },
    Format {
        what: "NumPy arrays",
        suffixes: &["npy", "npz"],
        marks: &[(0, b"\x93NUMPY")],
        remedy: NUMBERS,
    },
    Format {
        what: "the weights of a model",
        suffixes: &["safetensors", "gguf", "pt", "pth", "ckpt", "onnx", "pkl"],
        marks: &[(0, b"GGUF")],
        remedy: NUMBERS,
    },
    Format {
        what: "a ZIP archive",
        suffixes: &["zip", "jar", "whl"],
        marks: &[(0, b"PK\x03\x04"), (0, b"PK\x05\x06")],
        remedy: UNPACK,
    },
    Format {
        what: "an archive",
        suffixes: &["tar", "7z", "rar"],
        marks: &[(257, b"ustar"), (0, b"7z\xbc\xaf\x27\x1c"), (0, b"Rar!\x1a\x07")],
        remedy: UNPACK,
    },
    Format {
        what: "a Parquet table",
        suffixes: &["parquet"],
        marks: &[(0, b"PAR1")],
        remedy: EXPORT,
    },
    Format {
        what: "an Arrow table",
        suffixes: &["arrow", "feather"],
        marks: &[(0, b"ARROW1"), (0, b"\xff\xff\xff\xff")],
        remedy: EXPORT,
    },
    Format {
        what: "a database table",
        suffixes: &["orc", "avro", "sqlite", "sqlite3", "h5", "hdf5"],
        marks: &[(0, b"Obj\x01"), (0, b"SQLite format 3\0"), (0, b"\x89HDF\r\n")],
        remedy: EXPORT,
    },
    Format {
        what: "a binary file, such as tokens of another program",
        suffixes: &["bin", "idx"],
        marks: &[],
        remedy: NUMBERS,
    },
    Format { what: "a PDF", suffixes: &["pdf"], marks: &[(0, b"%PDF-")], remedy: AS_TEXT },
    Format {
        what: "UTF-16 text",
        suffixes: &[],
        marks: &[(0, b"\xff\xfe"), (0, b"\xfe\xff")],
        remedy: "convert it, such as by `iconv -f UTF-16 -t UTF-8 FILE > FILE.txt`",
    },
];

/// The form that a file's name promises.
pub(crate) fn by_name(name: &str) -> Option<&'static Format> {
    let suffix = name.rsplit_once('.')?.1.to_ascii_lowercase();
    FORMATS.iter().find(|format| format.suffixes.contains(&suffix.as_str()))
}

/// The form that the first [`HEAD_BYTES`] of a file have.
pub(crate) fn by_head(head: &[u8]) -> Option<&'static Format> {
    let has = |(at, mark): &(usize, &[u8])| head.get(*at..).is_some_and(|b| b.starts_with(mark));
    FORMATS.iter().find(|format| format.marks.iter().any(has))
}

/// JSON Lines under any name: the first two lines that are not blank are JSON objects with keys.
pub(crate) fn by_text(text: &str) -> Option<&'static Format> {
    let is_object = |line: &str| {
        let line = line.trim();
        line.starts_with('{')
            && line.ends_with('}')
            && serde_json::from_str::<serde_json::Map<_, _>>(line).is_ok_and(|map| !map.is_empty())
    };
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let is_records = lines.next().is_some_and(is_object) && lines.next().is_some_and(is_object);
    is_records.then_some(&JSON_LINES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_first_bytes_are_known() {
        let mut compared = 0;
        for (name, what) in [
            ("a.jsonl", "a file of JSON Lines"),
            ("B.TXT.GZ", "gzip-compressed"),
            ("c.parquet", "a Parquet table"),
            ("train.bin", "a binary file, such as tokens of another program"),
            ("paper.pdf", "a PDF"),
        ] {
            assert_eq!(by_name(name).map(|format| format.what), Some(what), "{name}");
            compared += 1;
        }
        let tar = [&[b'x'; 257][..], b"ustar\0"].concat();
        for (head, what) in [
            (&b"\x1f\x8b\x08"[..], "gzip-compressed"),
            (b"BZh91AY&SY", "bzip2-compressed"),
            (b"PAR1\x15", "a Parquet table"),
            (b"%PDF-1.7\n", "a PDF"),
            (b"\xff\xfeh\0", "UTF-16 text"),
            (&tar, "an archive"),
        ] {
            assert_eq!(by_head(head).map(|format| format.what), Some(what));
            compared += 1;
        }
        assert_eq!(compared, 11);
        for name in ["a.txt", "gz", "notes", "data.json", "table.csv", "page.html", "x.rs"] {
            assert_eq!(by_name(name), None, "{name}");
        }
        assert_eq!(by_head(b"plain text"), None);
    }

    #[test]
    fn json_lines_are_known_by_their_text() {
        assert!(by_text("{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n").is_some());
        for text in
            ["{\"text\": \"a\"}\n", "{}\n{}\n", "{ x }\n{ y }\n", "{\n \"a\": 1\n}\n", "", "a\nb"]
        {
            assert_eq!(by_text(text), None, "{text}");
        }
    }
}
