//! The text form, reading side. The grammar is in `docs/schedule.md`.

use std::fmt;
use std::str::FromStr;

use crate::nearest::nearest;
use crate::own::implied;
use crate::{
    Action, Compute, Message, Payload, Purpose, Reduction, Schedule, ScheduleError, SyncPlan,
    TiedSegment, Transfer,
};

/// A text that is not a schedule, or not an action: where, what, and what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The word found there; empty at the end of the text.
    pub token: String,
    /// What was expected.
    pub expected: String,
    /// The nearest valid word.
    pub nearest: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, token, expected, nearest } = self;
        write!(f, "line {line}, column {column}: ")?;
        if token.is_empty() {
            write!(f, "the text ends here, but `{nearest}` is missing")
        } else {
            write!(f, "`{token}` is not {expected}; the nearest is `{nearest}`")
        }
    }
}

impl std::error::Error for ParseError {}

/// A word of the text and its place.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    line: usize,
    column: usize,
    text: &'a str,
}

impl Token<'_> {
    fn error(&self, expected: impl Into<String>, nearest: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            column: self.column,
            token: self.text.to_owned(),
            expected: expected.into(),
            nearest: nearest.into(),
        }
    }
}

/// The shapes of an action: its letters, and the separators between its numbers.
struct Form {
    letters: &'static str,
    separators: &'static [char],
    example: &'static str,
}

const FORMS: [Form; 12] = [
    Form { letters: "F", separators: &['.'], example: "F<stage>.<micro-batch>" },
    Form { letters: "B", separators: &['.'], example: "B<stage>.<micro-batch>" },
    Form { letters: "B", separators: &['.', '/'], example: "B<stage>.<micro-batch>/<segment>" },
    Form { letters: "W", separators: &['.'], example: "W<stage>.<micro-batch>" },
    Form { letters: "W", separators: &['.', '/'], example: "W<stage>.<micro-batch>/<segment>" },
    Form { letters: "SA", separators: &['.', '>'], example: "SA<stage>.<micro-batch>><rank>" },
    Form { letters: "SG", separators: &['.', '>'], example: "SG<stage>.<micro-batch>><rank>" },
    Form { letters: "RA", separators: &['.', '<'], example: "RA<stage>.<micro-batch><<rank>" },
    Form { letters: "RG", separators: &['.', '<'], example: "RG<stage>.<micro-batch><<rank>" },
    Form { letters: "T", separators: &[], example: "T<stage>" },
    Form { letters: "G", separators: &['/'], example: "G<stage>/<segment>" },
    Form { letters: "A", separators: &['/'], example: "A<stage>/<segment>" },
];

impl Form {
    /// The numbers of a word that has exactly this form.
    fn numbers(&self, word: &str) -> Option<Vec<usize>> {
        let mut rest = word.strip_prefix(self.letters)?;
        let mut numbers = Vec::with_capacity(3);
        for &separator in self.separators {
            let (number, after) = rest.split_once(separator)?;
            numbers.push(parse_number(number)?);
            rest = after;
        }
        numbers.push(parse_number(rest)?);
        Some(numbers)
    }

    /// The word of this form with these numbers; those that are missing are 0.
    fn word(&self, numbers: &[usize]) -> String {
        let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
        let mut word = format!("{}{}", self.letters, number(0));
        for (index, separator) in self.separators.iter().enumerate() {
            word.push(*separator);
            word.push_str(&number(index + 1).to_string());
        }
        word
    }
}

/// Digits only, so that every number has one spelling but for leading zeros.
fn parse_number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// The numbers of the action that the word is, and the letters of its form.
fn parse_form(word: &str) -> Option<(&'static str, Vec<usize>)> {
    FORMS.iter().find_map(|form| Some((form.letters, form.numbers(word)?)))
}

fn parse_single(word: &str) -> Option<Action> {
    let (letters, numbers) = parse_form(word)?;
    let segment = numbers.get(2).copied();
    let (stage, second) = (numbers[0], numbers.get(1).copied().unwrap_or(0));
    let transfer = |payload| {
        let peer = segment.unwrap_or(0);
        Transfer { payload, stage, micro_batch: second, peer }
    };
    Some(match letters {
        "F" => Action::Compute(Compute::Forward { stage, micro_batch: second }),
        "B" => Action::Compute(Compute::BackwardInput { stage, micro_batch: second, segment }),
        "W" => Action::Compute(Compute::BackwardWeight { stage, micro_batch: second, segment }),
        "SA" => Action::Message(Message::Send(transfer(Payload::Activation))),
        "SG" => Action::Message(Message::Send(transfer(Payload::Gradient))),
        "RA" => Action::Message(Message::Recv(transfer(Payload::Activation))),
        "RG" => Action::Message(Message::Recv(transfer(Payload::Gradient))),
        "T" => Action::Sync(Reduction::ReduceTied { stage }),
        "G" => Action::Sync(Reduction::ReduceGrad { stage, segment: second }),
        "A" => Action::Sync(Reduction::AwaitGrad { stage, segment: second }),
        _ => return None,
    })
}

fn parse_action(token: Token<'_>) -> Result<Action, ParseError> {
    let Some((left, right)) = token.text.split_once('+') else {
        return parse_single(token.text).ok_or_else(|| {
            let (word, form) = nearest_word(token.text, &FORMS.each_ref());
            token.error(format!("an action ({})", form.example), word)
        });
    };
    match (parse_single(left), parse_single(right)) {
        (
            Some(Action::Message(Message::Send(send))),
            Some(Action::Message(Message::Recv(recv))),
        ) => Ok(Action::Message(Message::Exchange { send, recv })),
        _ => {
            let halves = |letter| {
                let forms = FORMS.iter().filter(move |form| form.letters.starts_with(letter));
                forms.filter(|form| form.letters.len() == 2).collect::<Vec<_>>()
            };
            let (send, _) = nearest_word(left, &halves('S'));
            let (recv, _) = nearest_word(right, &halves('R'));
            let expected = "an exchange (a send, `+`, a receive)";
            Err(token.error(expected, format!("{send}+{recv}")))
        }
    }
}

/// The word nearest to a wrong one: its numbers in the form that makes the fewest edits, among the
/// forms with its letters if there are such.
fn nearest_word<'f>(word: &str, forms: &[&'f Form]) -> (String, &'f Form) {
    let letters: String = word.chars().take_while(char::is_ascii_alphabetic).collect();
    let alike = |form: &Form| form.letters.eq_ignore_ascii_case(&letters);
    let any_alike = forms.iter().any(|form| alike(form));
    let numbers: Vec<usize> =
        word.split(|c: char| !c.is_ascii_digit()).filter_map(parse_number).collect();
    let candidates: Vec<(String, &Form)> = forms
        .iter()
        .filter(|form| !any_alike || alike(form))
        .map(|form| (form.word(&numbers), *form))
        .collect();
    let best = nearest(word, candidates.iter().map(|candidate| candidate.0.as_str()));
    let best = best.expect("invariant: at least one form is given").to_owned();
    let form = candidates.iter().find(|candidate| candidate.0 == best);
    (best, form.expect("invariant: it is one of the candidates").1)
}

impl FromStr for Action {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_action(Token { line: 1, column: 1, text })
    }
}

/// The words of a line, the comment left out.
fn tokens(line: usize, text: &str) -> Vec<Token<'_>> {
    let text = text.split('#').next().unwrap_or_default();
    // The column of each word from that of the one before: long lines are read in linear time.
    let (mut start, mut column) = (0, 1);
    let place = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    text.split_whitespace()
        .map(|word| {
            column += text[start..place(word)].chars().count();
            start = place(word);
            Token { line, column, text: word }
        })
        .collect()
}

const KEYS: [&str; 8] =
    ["schedule", "purpose", "micro-batches", "placement", "in-flight", "segments", "tied", "rank"];

/// What has been read so far.
#[derive(Default)]
struct Draft {
    name: Option<String>,
    purpose: Option<Purpose>,
    micro_batches: Option<usize>,
    placement: Option<Vec<usize>>,
    in_flight: Option<Vec<usize>>,
    segments: Option<Vec<usize>>,
    tied: Option<Vec<TiedSegment>>,
    actions: Vec<Vec<Action>>,
}

impl Draft {
    fn line(&mut self, tokens: &[Token<'_>]) -> Result<(), ParseError> {
        let Some((first, rest)) = tokens.split_first() else { return Ok(()) };
        if !first.text.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
            return self.actions(tokens);
        }
        match first.text {
            "schedule" => set(&mut self.name, first, one(first, rest, "my-schedule")?.text.into()),
            "purpose" => {
                let token = one(first, rest, "train")?;
                set(&mut self.purpose, first, purpose(token)?)
            }
            "micro-batches" => {
                let count = number(one(first, rest, "1")?)?;
                set(&mut self.micro_batches, first, count)
            }
            "placement" => set(&mut self.placement, first, numbers(rest)?),
            "in-flight" => set(&mut self.in_flight, first, numbers(rest)?),
            "segments" => set(&mut self.segments, first, numbers(rest)?),
            "tied" => {
                let tied: Result<_, _> = rest.iter().map(tied_segment).collect();
                set(&mut self.tied, first, tied?)
            }
            "rank" => self.rank(first, rest),
            _ => {
                let key = nearest(first.text, KEYS).unwrap_or_default();
                Err(first.error("a key of the schedule", key))
            }
        }
    }

    fn rank(&mut self, key: &Token<'_>, rest: &[Token<'_>]) -> Result<(), ParseError> {
        let next = self.actions.len().to_string();
        let Some((rank, actions)) = rest.split_first() else {
            return Err(key.error("followed by a number", format!("rank {next}")));
        };
        if number(rank)? != self.actions.len() {
            return Err(rank.error("the next rank (they come in order, from 0)", next));
        }
        self.actions.push(Vec::new());
        self.actions(actions)
    }

    fn actions(&mut self, tokens: &[Token<'_>]) -> Result<(), ParseError> {
        let Some(first) = tokens.first() else { return Ok(()) };
        let Some(list) = self.actions.last_mut() else {
            return Err(first.error("a key; actions stand below their rank", "rank 0"));
        };
        for token in tokens {
            list.push(parse_action(*token)?);
        }
        Ok(())
    }

    fn finish(self, end: &Token<'_>) -> Result<Schedule, ScheduleError> {
        let missing = |key: &str| end.error(format!("the key `{key}`"), key);
        let sync = match (self.segments, self.tied) {
            (Some(segments), tied) => Some(SyncPlan { segments, tied: tied.unwrap_or_default() }),
            (None, None) => None,
            (None, Some(_)) => return Err(missing("segments").into()),
        };
        let name = self.name.ok_or_else(|| missing("schedule"))?;
        if self.actions.is_empty() {
            return Err(missing("rank").into());
        }
        let (placement, micro_batches) = match (self.placement, self.micro_batches) {
            (Some(placement), Some(micro_batches)) => (placement, micro_batches),
            (placement, micro_batches) => {
                let implied = implied(&self.actions)?;
                (placement.unwrap_or(implied.0), micro_batches.unwrap_or(implied.1))
            }
        };
        let mut schedule = Schedule {
            name,
            purpose: self.purpose.unwrap_or(Purpose::Train),
            micro_batches,
            placement,
            in_flight_max: vec![],
            sync,
            actions: self.actions,
        };
        let peaks = || schedule.in_flight_peaks().iter().map(|peak| peak.count).collect();
        schedule.in_flight_max = self.in_flight.unwrap_or_else(peaks);
        schedule.check()?;
        Ok(schedule)
    }
}

fn set<T>(place: &mut Option<T>, key: &Token<'_>, value: T) -> Result<(), ParseError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(key.error("allowed twice", "#")),
    }
}

/// The only word behind a key.
fn one<'t, 'a>(
    key: &Token<'a>,
    rest: &'t [Token<'a>],
    example: &str,
) -> Result<&'t Token<'a>, ParseError> {
    match rest {
        [value] => Ok(value),
        [] => Err(key.error("followed by its value", format!("{} {example}", key.text))),
        [_, extra, ..] => Err(extra.error("the end of the line", "#")),
    }
}

fn purpose(token: &Token<'_>) -> Result<Purpose, ParseError> {
    let all = [Purpose::Train, Purpose::Evaluate];
    all.into_iter().find(|purpose| purpose.word() == token.text).ok_or_else(|| {
        let near = nearest(token.text, all.map(Purpose::word)).unwrap_or_default();
        token.error("a purpose", near)
    })
}

fn number(token: &Token<'_>) -> Result<usize, ParseError> {
    parse_number(token.text).ok_or_else(|| {
        let digits: String = token.text.chars().filter(char::is_ascii_digit).take(9).collect();
        token.error("a number", if digits.is_empty() { "0" } else { &digits })
    })
}

fn numbers(tokens: &[Token<'_>]) -> Result<Vec<usize>, ParseError> {
    tokens.iter().map(number).collect()
}

fn tied_segment(token: &Token<'_>) -> Result<TiedSegment, ParseError> {
    let form = Form { letters: "", separators: &['/'], example: "<stage>/<segment>" };
    match form.numbers(token.text).as_deref() {
        Some(&[stage, segment]) => Ok(TiedSegment { stage, segment }),
        _ => {
            let (word, form) = nearest_word(token.text, &[&form]);
            Err(token.error(format!("a tied segment ({})", form.example), word))
        }
    }
}

/// The line of a schedule's text, from 1, in which the list of a rank has an action.
pub(crate) fn line_of(text: &str, rank: usize, action: Action) -> Option<usize> {
    let mut current = None;
    for (index, line) in text.lines().enumerate() {
        let mut words = tokens(index + 1, line).into_iter().peekable();
        if words.next_if(|word| word.text == "rank").is_some() {
            current = words.next().and_then(|rank| parse_number(rank.text));
        }
        if current == Some(rank) && words.any(|word| parse_action(word) == Ok(action)) {
            return Some(index + 1);
        }
    }
    None
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    /// Reads the text form. What is left out is as in [`Schedule::compute`]. The parts are checked to fit
    /// together, the lists are not verified.
    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let mut draft = Draft::default();
        let mut lines = 0;
        for (index, line) in text.lines().enumerate() {
            lines = index + 1;
            draft.line(&tokens(lines, line))?;
        }
        draft.finish(&Token { line: lines + 1, column: 1, text: "" })
    }
}
