//! The order in which a table keeps its rows, evaluated before the insert: the server need not sort then. Pure.
//!
//! An order that is not quite the table's loses time and nothing else: the server looks whether rows are
//! sorted, and sorts them where they are not. Rows of which it knows no difference stay in the order in
//! which they came, as the server's own sort leaves them.

use std::collections::HashMap;

use jiff::tz::TimeZone;

use super::column::{ColumnType, Kind};
use super::partition::{Evaluator, Rule};
use super::value::Value;

/// Parts of a key that are told apart at most; the server sorts by what follows.
const PARTS_MAX: usize = 4;
/// Different values of a part, and of the parts together: with more, sorting costs more than it saves.
const DIFFERENT_MAX: usize = 4096;
/// Length of a value that is told apart: a column of texts in the key must not be held twice.
const NAME_BYTES_MAX: usize = 256;
/// A power of two.
const RECENT: usize = 64;

/// What the relay evaluates of a sorting key: parts that have few values, then one that has many.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Order {
    coarse: Vec<Part>,
    /// Index of a column of numbers or times.
    fine: Option<usize>,
}

/// A part of a sorting key.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// The column at this index.
    Column(usize),
    /// A time of so many ticks, rounded down.
    Rounded { column: usize, ticks: i64 },
    /// A date, as it is for a partition.
    Date(Rule),
}

/// Functions that round a time down, with their seconds.
const ROUNDING: [(&str, i64); 6] = [
    ("toStartOfMinute", 60),
    ("toStartOfFiveMinute", 300),
    ("toStartOfFiveMinutes", 300),
    ("toStartOfTenMinutes", 600),
    ("toStartOfFifteenMinutes", 900),
    ("toStartOfHour", 3600),
];

impl Order {
    /// Reads `system.tables.sorting_key` up to the first part that the relay cannot evaluate. `server_zone` is
    /// for columns that name none; `find` gives index and type of a column that the relay fills; `date` reads
    /// a part as a partition expression.
    pub(super) fn parse(
        key: &str,
        server_zone: Option<&TimeZone>,
        find: impl Fn(&str) -> Option<(usize, ColumnType)>,
        date: impl Fn(&str) -> Option<Rule>,
    ) -> Self {
        let mut parts = Vec::new();
        for text in parts_of(key) {
            let part = match find(text.trim_matches('`')) {
                Some((column, of)) if is_sorted_alike(&of) => Some(Part::Column(column)),
                Some(_) => None,
                None => rounded(text, server_zone, &find).or_else(|| {
                    let rule = date(text).filter(|rule| *rule != Rule::One);
                    rule.map(Part::Date)
                }),
            };
            let Some(part) = part else { break };
            let is_fine = matches!(part, Part::Column(_)) && !find_is_text(text, &find);
            parts.push((part, is_fine));
        }
        // A number in front of other parts may have few values; the last one need not.
        let fine = match parts.last() {
            Some((Part::Column(column), true)) => Some(*column),
            _ => None,
        };
        if fine.is_some() {
            parts.pop();
        }
        let coarse: Vec<Part> = parts.into_iter().map(|(part, _)| part).collect();
        match coarse.len() > PARTS_MAX {
            true => Self {
                coarse: coarse.into_iter().take(PARTS_MAX).collect(),
                fine: None,
            },
            false => Self { coarse, fine },
        }
    }

    /// Whether there is anything to sort by.
    pub(super) fn is_known(&self) -> bool {
        !self.coarse.is_empty() || self.fine.is_some()
    }
}

/// The parts of a key, at commas outside of parentheses.
fn parts_of(key: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = key.split(|c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect()
}

/// Whether the server sorts values of this type as their bytes or numbers.
fn is_sorted_alike(of: &ColumnType) -> bool {
    let is_alike = matches!(
        of.kind,
        Kind::String
            | Kind::Enum { .. }
            | Kind::Int { .. }
            | Kind::Bool
            | Kind::Date
            | Kind::Date32
            | Kind::DateTime
            | Kind::DateTime64 { .. }
            | Kind::Ipv4
    );
    is_alike && !of.nullable
}

fn find_is_text(name: &str, find: impl Fn(&str) -> Option<(usize, ColumnType)>) -> bool {
    let found = find(name.trim_matches('`'));
    found.is_some_and(|(_, of)| of.kind == Kind::String)
}

fn rounded(
    text: &str,
    server_zone: Option<&TimeZone>,
    find: impl Fn(&str) -> Option<(usize, ColumnType)>,
) -> Option<Part> {
    let (name, rest) = text.split_once('(')?;
    let (_, seconds) = ROUNDING.iter().find(|(known, _)| *known == name)?;
    let (column, of) = find(rest.strip_suffix(')')?.trim().trim_matches('`'))?;
    // Elsewhere hours begin at other times.
    if of.zone.as_ref().or(server_zone) != Some(&TimeZone::UTC) {
        return None;
    }
    let ticks = match of.kind {
        Kind::DateTime => 1,
        Kind::DateTime64 { precision } => 10_i64.checked_pow(precision)?,
        _ => return None,
    };
    let ticks = ticks.checked_mul(*seconds)?;
    (!of.nullable).then_some(Part::Rounded { column, ticks })
}

/// Sorts the rows of one block: rows that agree in the coarse parts are a group.
#[derive(Debug)]
pub(super) struct Sorter {
    names: Vec<Names>,
    dates: Vec<Evaluator>,
    groups: HashMap<Key, u32>,
    recent: Vec<Option<(Key, u32)>>,
    /// Of each row.
    group: Vec<u32>,
    fine: Vec<i64>,
    has_fine: bool,
}

/// The coarse parts of a row: each as a number that means it.
type Key = [u32; PARTS_MAX];

/// Different values of a part, numbered as they come.
#[derive(Debug)]
struct Names {
    numbers: HashMap<Box<[u8]>, u32>,
    /// Values that came lately, at a place that their length and bytes say.
    recent: Vec<Option<(Box<[u8]>, u32)>>,
}

impl Names {
    fn new() -> Self {
        Self {
            numbers: HashMap::new(),
            recent: vec![None; RECENT],
        }
    }

    fn number(&mut self, value: &[u8]) -> Option<u32> {
        let (first, last) = (value.first(), value.last());
        let mix = value.len()
            + usize::from(first.copied().unwrap_or_default()) * 7
            + usize::from(last.copied().unwrap_or_default()) * 31;
        let place = self.recent.get_mut(mix % RECENT)?;
        if let Some((known, number)) = place
            && **known == *value
        {
            return Some(*number);
        }
        let number = match self.numbers.get(value) {
            Some(number) => *number,
            None if self.numbers.len() == DIFFERENT_MAX => return None,
            None if value.len() > NAME_BYTES_MAX => return None,
            None => {
                let number = self.numbers.len() as u32;
                self.numbers.insert(value.into(), number);
                number
            }
        };
        *place = Some((value.into(), number));
        Some(number)
    }

    /// For each number, where its value stands among the others.
    fn ranks(&self) -> Vec<u32> {
        let mut sorted: Vec<_> = self.numbers.iter().collect();
        sorted.sort_unstable();
        let mut ranks = vec![0; sorted.len()];
        for (rank, (_, number)) in (0..).zip(sorted) {
            ranks[*number as usize] = rank;
        }
        ranks
    }
}

impl Sorter {
    pub(super) fn new(order: &Order) -> Self {
        Self {
            names: order.coarse.iter().map(|_| Names::new()).collect(),
            dates: order.coarse.iter().map(|_| Evaluator::new()).collect(),
            groups: HashMap::new(),
            recent: vec![None; RECENT],
            group: Vec::new(),
            fine: Vec::new(),
            has_fine: order.fine.is_some(),
        }
    }

    /// Takes the next row; `false` when there are too many different ones to sort.
    #[must_use]
    pub(super) fn push(&mut self, order: &Order, values: &[Value<'_>]) -> bool {
        self.place(order, values).is_some()
    }

    fn place(&mut self, order: &Order, values: &[Value<'_>]) -> Option<()> {
        let mut key = Key::default();
        for (at, part) in order.coarse.iter().enumerate() {
            key[at] = match part {
                Part::Column(column) => match values.get(*column)? {
                    Value::Bytes(bytes) => self.names[at].number(bytes)?,
                    value => self.names[at].number(&ordered(number(value)?))?,
                },
                Part::Rounded { column, ticks } => {
                    let rounded = number(values.get(*column)?)?.div_euclid(*ticks);
                    biased(rounded)?
                }
                Part::Date(rule) => biased(self.dates[at].key(rule, values).number())?,
            };
        }
        let group = self.group(key)?;
        if let Some(column) = order.fine {
            self.fine.push(number(values.get(column)?)?);
        }
        self.group.push(group);
        Some(())
    }

    fn group(&mut self, key: Key) -> Option<u32> {
        let mix = key
            .iter()
            .fold(0, |mix: u32, part| mix.wrapping_mul(31).wrapping_add(*part));
        let place = self.recent.get_mut(mix as usize % RECENT)?;
        if let Some((known, group)) = place
            && *known == key
        {
            return Some(*group);
        }
        let next = self.groups.len();
        if next == DIFFERENT_MAX && !self.groups.contains_key(&key) {
            return None;
        }
        let group = *self.groups.entry(key).or_insert(next as u32);
        *place = Some((key, group));
        Some(group)
    }

    /// The rows in order; `None` when they came in it.
    pub(super) fn order(self, order: &Order) -> Option<Vec<u32>> {
        let ranks: Vec<Vec<u32>> = self.names.iter().map(Names::ranks).collect();
        let ranked = |key: &Key| {
            let mut ranked = *key;
            for (at, part) in order.coarse.iter().enumerate() {
                if matches!(part, Part::Column(_)) {
                    ranked[at] = ranks[at][key[at] as usize];
                }
            }
            ranked
        };
        let mut groups: Vec<(Key, u32)> =
            self.groups.iter().map(|(k, g)| (ranked(k), *g)).collect();
        groups.sort_unstable();
        // Where the rows of each group go.
        let mut next = vec![0_usize; groups.len()];
        for group in &self.group {
            next[*group as usize] += 1;
        }
        let mut ranges = Vec::with_capacity(groups.len());
        let mut start = 0;
        for (_, group) in &groups {
            let count = std::mem::replace(&mut next[*group as usize], start);
            ranges.push(start..start + count);
            start += count;
        }
        let mut rows = vec![0_u32; self.group.len()];
        for (row, group) in (0..).zip(&self.group) {
            let to = &mut next[*group as usize];
            rows[*to] = row;
            *to += 1;
        }
        if self.has_fine {
            for range in ranges {
                // Stable, and quick where they are nearly in order.
                rows[range].sort_by_key(|row| self.fine[*row as usize]);
            }
        }
        let is_sorted = rows.windows(2).all(|pair| pair[0] < pair[1]);
        (!is_sorted).then_some(rows)
    }
}

/// A number or time as the column stores it; above the largest signed one they are not told apart.
fn number(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Unsigned(number) => Some(i64::try_from(*number).unwrap_or(i64::MAX)),
        Value::Signed(number) => Some(*number),
        Value::Named(_, code) => Some(i64::from(*code)),
        _ => None,
    }
}

/// Bytes that are sorted as the number is.
fn ordered(number: i64) -> [u8; 8] {
    (number.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

/// A small number of either sign as one that sorts alike.
fn biased(number: i64) -> Option<u32> {
    u32::try_from(number - i64::from(i32::MIN)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const COLUMNS: [(&str, &str); 7] = [
        ("event_type", "LowCardinality(String)"),
        ("event_date_time", "DateTime64(3, 'UTC')"),
        ("environment", "String"),
        ("tenant", "Int32"),
        ("maybe", "Nullable(String)"),
        ("fixed", "FixedString(3)"),
        ("kolkata", "DateTime('Asia/Kolkata')"),
    ];

    fn parsed(key: &str) -> Order {
        let find = |name: &str| {
            let at = COLUMNS.iter().position(|(known, _)| *known == name)?;
            Some((at, ColumnType::parse(COLUMNS[at].1)?))
        };
        let date = |text: &str| Rule::parse(text, None, false, find).ok();
        Order::parse(key, None, find, date)
    }

    #[test]
    fn keys_are_read_up_to_what_is_not_known() {
        let recommended =
            parsed("event_type, toStartOfHour(event_date_time), environment, event_date_time");
        assert_eq!((recommended.coarse.len(), recommended.fine), (3, Some(1)));
        assert_eq!(parsed("tenant, event_type").coarse.len(), 2);
        assert_eq!(parsed("`tenant`").fine, Some(3));
        assert_eq!(
            parsed("toDate(event_date_time), event_type").coarse.len(),
            2
        );
        assert_eq!(
            parsed("event_type, cityHash64(a, b), tenant").coarse.len(),
            1
        );
        for key in [
            "",
            "tuple()",
            "maybe, tenant",
            "nobody",
            "lower(event_type)",
            "fixed, tenant",
            "toStartOfHour(kolkata), tenant",
        ] {
            assert!(!parsed(key).is_known(), "{key}");
        }
    }

    /// A row of few or many different values.
    type Given = (String, i64, String, i64);

    fn values(row: &Given) -> [Value<'_>; 4] {
        [
            Value::Bytes(row.0.as_bytes()),
            Value::Signed(row.1),
            Value::Bytes(row.2.as_bytes()),
            Value::Signed(row.3),
        ]
    }

    proptest! {
        #[test]
        fn rows_are_sorted_as_the_server_sorts_them(
            rows in vec(("[ab]{0,3}", -20_000_000_i64..20_000_000, "[xy]?", -3_i64..3), 0..200),
        ) {
            type By = fn(&Given) -> (String, i64, String, i64);
            let keys: [(&str, By); 3] = [
                (
                    "event_type, toStartOfHour(event_date_time), environment, event_date_time",
                    |r| (r.0.clone(), r.1.div_euclid(3_600_000), r.2.clone(), r.1),
                ),
                ("tenant, event_type", |r| (String::new(), r.3, r.0.clone(), 0)),
                ("event_date_time", |r| (String::new(), r.1, String::new(), 0)),
            ];
            for (key, by) in keys {
                let order = parsed(key);
                let mut sorter = Sorter::new(&order);
                for row in &rows {
                    prop_assert!(sorter.push(&order, &values(row)));
                }
                let mut expected: Vec<u32> = (0..rows.len() as u32).collect();
                expected.sort_by_key(|row| by(&rows[*row as usize]));
                let sorted = sorter.order(&order);
                let is_sorted = expected.windows(2).all(|pair| pair[0] < pair[1]);
                prop_assert_eq!(sorted.is_none(), is_sorted);
                prop_assert!(sorted.is_none_or(|sorted| sorted == expected), "{}", key);
            }
        }
    }

    #[test]
    fn too_many_different_rows_are_not_sorted() {
        let order = parsed("event_type, event_date_time");
        let mut sorter = Sorter::new(&order);
        let taken = (0..).take_while(|number: &usize| {
            let name = number.to_string();
            let row = [Value::Bytes(name.as_bytes()), Value::Signed(0)];
            sorter.push(&order, &row)
        });
        assert_eq!(taken.count(), DIFFERENT_MAX);
    }

    #[test]
    fn inv_7_texts_of_the_key_are_not_held_twice() {
        let order = parsed("environment, event_type");
        let (short, long) = (vec![b'x'; NAME_BYTES_MAX], vec![b'x'; NAME_BYTES_MAX + 1]);
        let row = |text| [Value::Bytes(b"a"), Value::Signed(0), Value::Bytes(text)];
        let mut sorter = Sorter::new(&order);
        assert!(sorter.push(&order, &row(&short)));
        assert!(!sorter.push(&order, &row(&long)));
    }
}
