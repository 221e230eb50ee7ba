//! Quoting: the only place where a name or a text becomes part of a statement.

use std::fmt::Write as _;

/// A name between backquotes.
pub(super) fn ident(name: &str) -> String {
    format!("`{}`", escaped(name, '`'))
}

/// `database.table`, both quoted.
pub(super) fn table(database: &str, table: &str) -> String {
    format!("{}.{}", ident(database), ident(table))
}

/// A text between single quotes.
pub(super) fn text(value: &str) -> String {
    format!("'{}'", escaped(value, '\''))
}

/// Texts between single quotes, with commas between them; at least one is expected.
pub(super) fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = values.into_iter().map(text).collect();
    quoted.join(", ")
}

/// Backslash escapes of ClickHouse's lexer.
fn escaped(value: &str, quote: char) -> String {
    let mut out = String::with_capacity(value.len());
    for char in value.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            '\0' => out.push_str("\\0"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_quotes() {
        assert_eq!(text(r"a' or 1=1 --\"), r"'a\' or 1=1 --\\'");
        assert_eq!(ident("a`b\\"), r"`a\`b\\`");
        assert_eq!(text("\0\n\u{1}é"), "'\\0\\n\\x01é'");
        assert_eq!(table("d", "t"), "`d`.`t`");
    }
}
