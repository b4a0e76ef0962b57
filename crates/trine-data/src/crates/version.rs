//! Which of two versions is the higher one.

use std::cmp::Ordering;

/// A version by the precedence rules of semver.org (item 11). Build metadata does not count. Text
/// that is no version comes before all versions.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    core: [u64; 3],
    pre: Pre,
}

/// The part after `-`: having one is lower than having none.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pre {
    Some(Vec<Identifier>),
    None,
}

#[derive(Debug, PartialEq, Eq)]
enum Identifier {
    Number(u64),
    Text(String),
}

impl Version {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.split('+').next().unwrap_or(text);
        let (core, pre) = match text.split_once('-') {
            Some((core, pre)) => (core, Pre::Some(pre.split('.').map(Identifier::parse).collect())),
            None => (text, Pre::None),
        };
        let mut numbers = core.split('.').map(|part| part.parse().ok());
        let core = [numbers.next()??, numbers.next()??, numbers.next()??];
        numbers.next().is_none().then_some(Self { core, pre })
    }
}

impl Identifier {
    fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::Number)
    }
}

impl Ord for Identifier {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            // Numbers are lower than words.
            (Self::Number(_), Self::Text(_)) => Ordering::Less,
            (Self::Text(_), Self::Number(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Identifier {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence() {
        let ascending = [
            "nonsense",
            "0.2.191",
            "0.10.0",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.5",
            "1.0.0-alpha.beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.2.0+spec-1.1.0",
            "2.0.0-rc.3",
            "10.0.0",
        ];
        let mut compared = 0;
        for pair in ascending.windows(2) {
            assert!(Version::parse(pair[0]) < Version::parse(pair[1]), "{pair:?}");
            compared += 1;
        }
        assert_eq!(compared, 13);
        assert_eq!(Version::parse("1.0.0+a"), Version::parse("1.0.0+b"));
        assert_eq!(Version::parse("1.0"), None);
        assert_eq!(Version::parse("1.0.0.0"), None);
    }
}
