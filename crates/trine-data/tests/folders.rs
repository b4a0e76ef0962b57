//! What is taken of a user's folder, and what is said of the rest.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use trine_data::{
    Corpus, Dataset, PrepareOptions, Prepared, Selection, SkipReason, Source, build, prepare, toy,
};

fn write(root: &Path, name: &str, contents: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

fn corpus(root: &Path) -> Corpus {
    Source::at(root).unwrap().corpus(&Selection::default()).unwrap()
}

fn names(corpus: &Corpus) -> BTreeSet<&str> {
    corpus.train.iter().chain(&corpus.validation).map(|d| d.name.as_str()).collect()
}

fn error(path: &Path) -> String {
    let source = Source::at(path);
    let corpus = source.and_then(|source| source.corpus(&Selection::default()));
    let message = corpus.unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn large_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "readme.txt", "three books\n");
    let books: Vec<String> =
        (0..3).map(|i| format!("book {i}\n") + &toy::text(1_200_000 + 1000 * i)).collect();
    for (i, book) in books.iter().enumerate() {
        write(folder.path(), &format!("{i}.txt"), book);
    }
    let corpus = corpus(folder.path());
    // The books have the same beginning, and so are one.
    assert_eq!(names(&corpus), BTreeSet::from(["0.txt", "readme.txt"]));
    assert_eq!(corpus.report.skipped.of(SkipReason::NearDuplicate).count, 2);
    let bytes = corpus.report.train_bytes + corpus.report.validation_bytes;
    assert_eq!(bytes, books[0].len() as u64 + 12);
}

#[test]
fn what_is_left_out_is_counted_by_reason() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let documents = toy::documents(4, 2000);
    write(root, "a.txt", &documents[0].text);
    write(root, "deep/b", &documents[1].text);
    write(root, "page/index.json", "{\"title\": \"a page\"}");
    write(root, ".hidden", "not seen");
    write(root, ".git/config", "[core]");
    write(root, ".gitignore", "*.log\n/out/\n!keep.log\n[\n");
    write(root, "out/c.txt", &documents[2].text);
    write(root, "deep/x.log", &documents[2].text);
    write(root, "deep/keep.log", &documents[3].text);
    write(root, "deep/.gitignore", "b.tmp\n");
    write(root, "deep/b.tmp", "x");
    write(root, "b.tmp", "a word that only this one has\n");
    write(root, "records.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    write(root, "records.txt", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    write(root, "packed.gz", b"\x1f\x8b\x08\0");
    write(root, "packed", b"\x28\xb5\x2f\xfd....");
    write(root, "table.parquet", "PAR1");
    write(root, "picture.png", b"\x89PNG\r\n\x1a\n\0");
    write(root, "blank.txt", " \n");
    write(root, "copy.txt", &documents[0].text);
    let corpus = corpus(root);
    let taken = ["a.txt", "b.tmp", "deep/b", "deep/keep.log", "page/index.json"];
    assert_eq!(names(&corpus), BTreeSet::from(taken));
    let found: Vec<_> = corpus
        .report
        .skipped
        .iter()
        .map(|(reason, skip)| (reason, skip.count, skip.examples.join(" ")))
        .collect();
    let expected = [
        (SkipReason::NotText, 1, "picture.png"),
        (SkipReason::Empty, 1, "blank.txt"),
        (SkipReason::NearDuplicate, 1, "copy.txt"),
        (SkipReason::Hidden, 4, ".git .gitignore .hidden deep/.gitignore"),
        (SkipReason::Ignored, 3, "out deep/b.tmp deep/x.log"),
        (SkipReason::Format, 5, "packed packed.gz records.jsonl records.txt table.parquet"),
    ];
    let expected = expected.map(|(reason, count, names)| (reason, count, names.to_owned()));
    assert_eq!(found, expected);
    assert_eq!(corpus.report.skipped.of(SkipReason::Empty).bytes, 2);
}

#[cfg(unix)]
#[test]
fn links_are_followed_once() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let (root, blobs) = (folder.path().join("snapshot"), folder.path().join("blobs"));
    for (i, document) in toy::documents(3, 2000).iter().enumerate() {
        write(&blobs, &format!("hash{i}"), &document.text);
    }
    fs::create_dir(&root).unwrap();
    symlink("../blobs/hash0", root.join("a.txt")).unwrap();
    symlink("../blobs/hash1", root.join("b.txt")).unwrap();
    write(&root, "real/c.txt", "text of its own\n");
    // The folder itself, one around it, one that is there by its own name, one from outside, twice.
    symlink(".", root.join("loop")).unwrap();
    symlink("../..", root.join("real/above")).unwrap();
    symlink("real", root.join("again")).unwrap();
    symlink("../blobs", root.join("more")).unwrap();
    symlink("../blobs", root.join("more2")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    symlink("circle", root.join("circle")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(root.join("pipe")).status().unwrap();
    assert!(pipe.success());
    symlink("pipe", root.join("to_pipe")).unwrap();
    let corpus = corpus(&root);
    // hash0 and hash1 are there already, by the names that their links give them.
    assert_eq!(names(&corpus), BTreeSet::from(["a.txt", "b.txt", "more/hash2", "real/c.txt"]));
    let count = |reason| corpus.report.skipped.of(reason).count;
    assert_eq!(count(SkipReason::NearDuplicate), 2);
    assert_eq!(count(SkipReason::Again), 4);
    assert_eq!(count(SkipReason::BrokenLink), 2);
    assert_eq!(count(SkipReason::NotRegular), 2);
    assert!(error(&root.join("pipe")).contains("is a pipe, not a regular file"));
    assert!(error(Path::new("/dev/zero")).contains("is a device"));
}

#[test]
fn no_document_is_both_trained_on_and_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let text = toy::text(20_000);
    for i in 0..20 {
        write(folder.path(), &format!("{i}.txt"), &text);
    }
    let same = corpus(folder.path());
    assert_eq!(same.report.skipped.of(SkipReason::NearDuplicate).count, 19);
    let joined = same.train[0].text.clone() + &same.validation[0].text;
    assert_eq!((same.train.len(), joined), (1, text));
    write(folder.path(), "twice.txt", "xx");
    assert!(error(&folder.path().join("twice.txt")).contains("its two halves are equal"));
}

#[test]
fn forms_that_are_no_plain_text_are_refused_as_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &[&str]); 8] = [
        ("a.jsonl", b"{\"text\": \"a\"}\n", &["JSON Lines", "jq -r .text"]),
        ("a.txt", b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n", &["JSON Lines"]),
        ("a.txt.gz", b"\x1f\x8b\x08", &["gzip-compressed", "unpack it"]),
        ("b.txt", b"\x1f\x8b\x08\0", &["gzip-compressed"]),
        ("a.zst", b"", &["Zstandard-compressed"]),
        ("a.parquet", b"PAR1", &["a Parquet table", "text column"]),
        ("c.txt", b"\xff\xfet\0e\0", &["UTF-16 text", "iconv"]),
        ("d.txt", b"text\0more", &["not plain text: byte 4 is NUL"]),
    ];
    for (name, bytes, parts) in cases {
        write(folder.path(), name, bytes);
        let message = error(&folder.path().join(name));
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(message.contains(name), "{message}");
    }
}

fn prepared(root: &Path) -> Prepared {
    write(root, "text.rs", toy::text(30_000));
    let source = Source::at(&root.join("text.rs")).unwrap();
    prepare(&source, &PrepareOptions::new(300, 1), &root.join("cache"), &mut |_| {}).unwrap()
}

#[test]
fn only_its_index_makes_a_folder_a_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = prepared(folder.path()).path;
    assert_eq!(Source::at(&dataset).unwrap(), Source::Prepared(dataset.clone()));
    let index = dataset.join("index.json");
    let json = fs::read_to_string(&index).unwrap();
    // Damaged, it still is one; reading it says what is wrong.
    fs::write(&index, &json[..json.len() / 2]).unwrap();
    assert_eq!(Source::at(&dataset).unwrap(), Source::Prepared(dataset.clone()));
    for other in [Some("{\"title\": \"a page\"}"), None] {
        match other {
            Some(text) => fs::write(&index, text).unwrap(),
            None => fs::remove_file(&index).unwrap(),
        }
        let message = error(&dataset);
        assert!(message.contains("index.json") && message.contains("trine-dataset"), "{message}");
    }
    fs::create_dir(&index).unwrap();
    assert!(error(&dataset).contains("no index.json of format"));
    fs::remove_dir(&index).unwrap();
    fs::write(&index, json).unwrap();
    // Inside a folder of text it is left out.
    let corpus = corpus(folder.path());
    assert_eq!(names(&corpus), BTreeSet::from(["text.rs"]));
    assert_eq!(corpus.report.skipped.of(SkipReason::Dataset).count, 1);
}

#[test]
fn a_cached_dataset_tells_what_is_left_out_now() {
    let folder = tempfile::tempdir().unwrap();
    let (root, cache) = (folder.path().join("text"), folder.path().join("cache"));
    for document in toy::documents(3, 2000) {
        write(&root, &document.name, &document.text);
        write(&root, "copy.txt", &document.text);
    }
    let source = Source::at(&root).unwrap();
    let report = || {
        let options = PrepareOptions::new(300, 1);
        let prepared = prepare(&source, &options, &cache, &mut |_| {}).unwrap();
        (prepared.is_reused, prepared.dataset.report.skipped)
    };
    let (is_reused, skipped) = report();
    assert!(!is_reused && skipped.of(SkipReason::Format).count == 0);
    write(&root, "more.jsonl", "{}");
    let (is_reused, skipped) = report();
    assert!(is_reused);
    assert_eq!(skipped.of(SkipReason::Format).examples, ["more.jsonl"]);
    assert_eq!(skipped.of(SkipReason::NearDuplicate).count, 1);
}

/// The bytes that docs/data.md promises, written and read without this crate's writer.
#[test]
fn datasets_of_other_programs_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = prepared(folder.path()).path;
    let theirs = folder.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let json = fs::read(dataset.join("tokenizer.json")).unwrap();
    let file = |name: &str, count: usize| format!("{{\"file\": \"{name}\", \"count\": {count}}}");
    let split = |name: &str, documents: &[&[u16]]| {
        let tokens: Vec<u16> = documents.concat();
        let mut start = 0;
        let starts = documents.iter().map(|document| {
            start += document.len() as u64;
            start - document.len() as u64
        });
        let starts: Vec<u8> = starts.flat_map(u64::to_le_bytes).collect();
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        write(&theirs, &format!("{name}.bin"), bytes);
        write(&theirs, &format!("{name}.documents.bin"), starts);
        format!(
            "{{\"raw_bytes\": 9, \"tokens\": {}, \"documents\": {}}}",
            file(&format!("{name}.bin"), tokens.len()),
            file(&format!("{name}.documents.bin"), documents.len()),
        )
    };
    let (train, validation) =
        (split("train", &[&[5, 6, 7, 0], &[299, 0]]), split("val", &[&[8, 0]]));
    let index = |tokenizer: &str| {
        format!(
            "{{\"format\": \"trine-dataset\", \"version\": 1, \"dtype\": \"u16\", \"vocab_size\": \
             300, \"end_of_text\": 0, \"tokenizer\": {}, \"train\": {train}, \"validation\": \
             {validation}, \"later\": 1}}",
            file(tokenizer, json.len()),
        )
    };
    write(&theirs, "tokenizer.json", &json);
    write(&theirs, "index.json", index("tokenizer.json"));
    let opened = Dataset::open(&theirs).unwrap();
    assert_eq!(opened.train.to_vec(), [5, 6, 7, 0, 299, 0]);
    assert_eq!(opened.train.document_starts(), [0, 4]);
    assert_eq!((opened.validation.to_vec(), opened.validation.raw_bytes()), (vec![8, 0], 9));
    assert_eq!((opened.report.train_documents, opened.report.corpus_hash.len()), (2, 32));
    // What this crate writes is laid out the same.
    let ours = Dataset::open(&dataset).unwrap();
    let bytes: Vec<u8> = ours.train.iter().flat_map(|token| (token as u16).to_le_bytes()).collect();
    assert_eq!(fs::read(dataset.join("train.bin")).unwrap(), bytes);
    assert_eq!(fs::read(dataset.join("train.documents.bin")).unwrap(), 0_u64.to_le_bytes());
    // No index has a file read that is not of its folder.
    for place in ["../text.rs", "/etc/hostname", "..", ""] {
        write(&theirs, "index.json", index(place));
        let message = Dataset::open(&theirs).unwrap_err().to_string();
        assert!(message.contains("is not the name of a file in this folder"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn a_datasets_files_are_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = prepared(folder.path()).path;
    let tokens = dataset.join("train.bin");
    fs::rename(&tokens, dataset.join("moved.bin")).unwrap();
    std::os::unix::fs::symlink("moved.bin", &tokens).unwrap();
    assert!(Dataset::open(&dataset).is_ok());
    fs::rename(dataset.join("moved.bin"), folder.path().join("moved.bin")).unwrap();
    fs::remove_file(&tokens).unwrap();
    std::os::unix::fs::symlink("../../moved.bin", &tokens).unwrap();
    let message = Dataset::open(&dataset).unwrap_err().to_string();
    assert!(message.contains("train.bin") && message.contains("link out of"), "{message}");
    fs::remove_file(&tokens).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&tokens).status().unwrap().success());
    let message = Dataset::open(&dataset).unwrap_err().to_string();
    assert!(message.contains("is a pipe"), "{message}");
}

#[test]
fn built_datasets_hold_several_sources() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (i, document) in toy::documents(40, 1000).iter().enumerate() {
        write(root, &format!("{}/{i}.rs", ["a", "b"][i % 2]), &document.text);
    }
    write(root, "c.txt", toy::text(5000));
    let source = Source::Several(["a", "b", "c.txt"].map(|name| root.join(name)).to_vec());
    let options = |seed, validation_share| PrepareOptions {
        selection: Selection { seed, validation_share, ..Selection::default() },
        ..PrepareOptions::new(300, 1)
    };
    let out = root.join("out/set");
    let made = build(&source, &options(0, 0.2), &out, &mut |_| {}).unwrap();
    let opened = Dataset::open(&out).unwrap();
    assert_eq!((&opened.train, &opened.report), (&made.train, &made.report));
    let report = &made.report;
    assert_eq!(report.train_documents + report.validation_documents, 41);
    let all = (report.train_bytes + report.validation_bytes) as f64;
    let share = report.validation_bytes as f64 / all;
    assert!((0.2..0.24).contains(&share), "{share}");
    assert!(report.held_out.iter().all(|name| name.starts_with("a/") || name.starts_with("b/")));
    let other = build(&source, &options(1, 0.2), &root.join("other"), &mut |_| {}).unwrap();
    assert_ne!(other.report.held_out, report.held_out);
    let error = build(&source, &options(0, 0.2), &out, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    let error = build(&source, &options(0, 0.0), &root.join("x"), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("validation share 0"), "{error}");
    assert!(!root.join("x").exists() && !root.join(".x.part").exists());
}
