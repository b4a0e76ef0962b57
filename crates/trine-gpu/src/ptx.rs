//! The entries of a text in PTX: which kernels it has, and which arguments they take (PTX ISA 8.0, 5.1.5 and 11.1).

use std::collections::BTreeMap;
use std::fmt;

/// What a number in an argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An integer, or an address.
    Integer,
    /// A floating-point number.
    Float,
    /// Bits: the text does not say.
    Bits,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its bytes.
    pub bytes: usize,
    /// What they are.
    pub kind: Kind,
}

impl Parameter {
    /// Whether an argument that `given` describes can be handed over.
    pub(crate) fn takes(self, given: Self) -> bool {
        let is_unsaid = self.kind == Kind::Bits || given.kind == Kind::Bits;
        self.bytes == given.bytes && (is_unsaid || self.kind == given.kind)
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Integer => "an integer",
            Kind::Float => "a float",
            Kind::Bits => "a value",
        };
        write!(f, "{kind} of {} bytes", self.bytes)
    }
}

/// The arguments of each kernel in the text.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn entries(text: &str) -> Result<BTreeMap<String, Vec<Parameter>>, &'static str> {
    if !text.contains(".version") || !text.contains(".target") {
        return Err("is no PTX: it has no `.version` and `.target`");
    }
    let mut entries = BTreeMap::new();
    for entry in text.split(".entry").skip(1) {
        let (name, rest) = entry.split_once('(').ok_or("ends in the head of a kernel")?;
        let (list, _) = rest.split_once(')').ok_or("ends in the arguments of a kernel")?;
        let list = list.split(',').map(str::trim).filter(|argument| !argument.is_empty());
        let parameters = list.map(parameter).collect::<Option<_>>();
        let parameters = parameters.ok_or("has an argument without a known type")?;
        entries.insert(name.trim().to_owned(), parameters);
    }
    if entries.is_empty() { Err("has no kernel") } else { Ok(entries) }
}

/// `.param .u64 .ptr .align 1 name`, `.param .align 4 .b8 name[12]`.
fn parameter(text: &str) -> Option<Parameter> {
    let mut types = text.split_whitespace().rev().filter_map(|word| {
        let (kind, bits) = word.strip_prefix('.')?.split_at_checked(1)?;
        let kind = match kind {
            "u" | "s" => Kind::Integer,
            "f" => Kind::Float,
            "b" => Kind::Bits,
            _ => return None,
        };
        let bits: usize = bits.parse().ok()?;
        bits.is_multiple_of(8).then_some((kind, bits / 8))
    });
    let (kind, bytes) = types.next()?;
    let count = text.split_once('[').map(|(_, rest)| rest.trim_end_matches(']').trim().parse());
    let bytes = bytes.checked_mul(count.unwrap_or(Ok(1)).ok()?)?;
    Some(Parameter { bytes, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n\n\t// .globl\tnorm\n";

    #[test]
    fn arguments_are_read_as_compilers_write_them() {
        let text = format!(
            "{HEAD}.visible .entry norm(\n\t.param .u64 norm_param_0,\n\t.param .u64 .ptr .align 1 norm_param_1,\n\t\
             .param .f32 norm_param_2,\n\t.param .align 4 .b8 norm_param_3[12]\n)\n.maxntid 128, 1, 1\n{{ret;}}\n\
             .visible .entry none()\n{{ret;}}\n"
        );
        let entries = entries(&text).unwrap();
        let of = |bytes, kind| Parameter { bytes, kind };
        let norm =
            [of(8, Kind::Integer), of(8, Kind::Integer), of(4, Kind::Float), of(12, Kind::Bits)];
        assert_eq!((entries.len(), &*entries["norm"], &*entries["none"]), (2, &norm[..], &[][..]));
    }

    #[test]
    fn a_text_that_is_no_image_says_why() {
        let broken = [
            ("", "is no PTX: it has no `.version` and `.target`"),
            (HEAD, "has no kernel"),
            (&format!("{HEAD}.visible .entry norm"), "ends in the head of a kernel"),
            (
                &format!("{HEAD}.visible .entry norm(.param .u64 a"),
                "ends in the arguments of a kernel",
            ),
            (&format!("{HEAD}.entry norm(.param .pred a)"), "has an argument without a known type"),
            (
                &format!("{HEAD}.entry norm(.param .b8 a[x])"),
                "has an argument without a known type",
            ),
        ];
        for (text, why) in broken {
            assert_eq!(entries(text), Err(why));
        }
    }

    #[test]
    fn kinds_must_agree_where_both_are_known() {
        let of = |bytes, kind| Parameter { bytes, kind };
        assert!(of(4, Kind::Float).takes(of(4, Kind::Float)));
        assert!(of(4, Kind::Bits).takes(of(4, Kind::Float)));
        assert!(!of(4, Kind::Float).takes(of(4, Kind::Integer)));
        assert!(!of(8, Kind::Float).takes(of(4, Kind::Float)));
    }
}
