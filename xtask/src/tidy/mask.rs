//! Splits Rust source into code and comments, so that rules can look at one without being fooled by the other.
//!
//! Not a parser: it knows comments, strings and characters, and nothing else. Both halves keep every line break and
//! column.

/// A source with everything but code, and one with everything but comments, replaced by spaces.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Masked {
    /// Code without comments and without the contents of strings and characters.
    pub(super) code: String,
    /// The text of comments, documentation included.
    pub(super) comments: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Masks one source file.
pub(super) fn mask(source: &str) -> Masked {
    let mut masked = Masked { code: String::new(), comments: String::new() };
    let mut rest = source;
    let mut previous = ' ';
    while let Some(first) = rest.chars().next() {
        let (kind, len) = next_token(rest, first, previous);
        let (token, tail) = rest.split_at(len);
        for c in token.chars() {
            let blank = if c.is_whitespace() { c } else { ' ' };
            masked.code.push(if kind == Kind::Code { c } else { blank });
            masked.comments.push(if kind == Kind::Comment { c } else { blank });
        }
        previous = token.chars().next_back().unwrap_or(previous);
        rest = tail;
    }
    masked
}

/// Kind and length in bytes of the token at the start of `rest`.
fn next_token(rest: &str, first: char, previous: char) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment_len(rest));
    }
    if first == '"' {
        return (Kind::Literal, quoted_len(rest, 0, '"'));
    }
    if !is_word(previous)
        && let Some(len) = raw_string_len(rest)
    {
        return (Kind::Literal, len);
    }
    if first == '\''
        && let Some(len) = char_len(rest)
    {
        return (Kind::Literal, len);
    }
    (Kind::Code, first.len_utf8())
}

/// Block comments nest.
fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let tail = &rest[at..];
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// Length of a literal whose opening quote is at byte `open`; a backslash hides the next character.
fn quoted_len(rest: &str, open: usize, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().filter(|(at, _)| *at > open) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Length of `r"…"`, `r#"…"#`, `br"…"`, `cr"…"`, if one starts here.
fn raw_string_len(rest: &str) -> Option<usize> {
    let prefix = ["r", "br", "cr"].iter().find(|prefix| {
        rest.strip_prefix(**prefix).is_some_and(|tail| tail.starts_with(['"', '#']))
    })?;
    let body = &rest[prefix.len()..];
    let hashes = body.len() - body.trim_start_matches('#').len();
    let text = body[hashes..].strip_prefix('"')?; // else a raw identifier, r#type
    let close = format!("\"{}", "#".repeat(hashes));
    let opening_len = prefix.len() + hashes + 1;
    Some(text.find(&close).map_or(rest.len(), |at| opening_len + at + close.len()))
}

/// Length of a character literal, or `None` for a lifetime.
fn char_len(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        return Some(quoted_len(rest, 0, '\''));
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

/// True if `c` can be part of an identifier.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The lines (from 0) of items that are compiled for tests only: those under `#[cfg(test)]`.
pub(super) fn test_lines(code: &str) -> Vec<bool> {
    let mut is_test = vec![false; code.lines().count()];
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let start = from + found;
        let end = item_end(code, start);
        let first = code[..start].matches('\n').count();
        let last = code[..end].matches('\n').count().min(is_test.len().saturating_sub(1));
        is_test[first..=last].fill(true);
        from = end;
    }
    is_test
}

/// Byte after the item that starts at `start`: its first `;`, or the brace that closes its first `{`.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth <= 1 => return start + at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return start + at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, code: &str, comments: &str) {
        let masked = mask(source);
        assert_eq!(masked.code.trim_end(), code, "code of {source}");
        assert_eq!(masked.comments.trim(), comments, "comments of {source}");
        assert_eq!(masked.code.chars().count(), source.chars().count());
        assert_eq!(masked.comments.lines().count(), source.lines().count());
    }

    #[test]
    fn comments_and_literals_are_told_from_code() {
        check("let x = 1; // one", "let x = 1;", "// one");
        check("a /* b /* c */ d */ e", "a                   e", "/* b /* c */ d */");
        check(r#"f("// no \" comment") + 1"#, r"f(                  ) + 1", "");
        check(r##"f(r#"a "b" c"#);"##, "f(            );", "");
        check("f::<'a>(b'x', '\\'', 'é')", "f::<'a>(b   ,     ,    )", "");
        check("r#type + bar\"x\"", "r#type + bar", "");
    }

    #[test]
    fn an_open_literal_or_comment_ends_with_the_file() {
        check("f(\"abc", "f(", "");
        check("x /* abc", "x", "/* abc");
        check("r\"abc", "", "");
    }

    #[test]
    fn test_items_end_at_their_brace() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { \"}\" }\n}\nfn c() {}\n";
        assert_eq!(test_lines(&mask(source).code), [false, true, true, true, true, false]);
        let declared = "#[cfg(test)]\nmod tests;\nfn c() {}\n";
        assert_eq!(test_lines(&mask(declared).code), [true, true, false]);
    }
}
