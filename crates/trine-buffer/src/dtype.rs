//! Element types.

use crate::{Slice, SliceMut, buf::HostVec};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// 64-bit unsigned.
    U64,
    /// 32-bit unsigned: token ids.
    U32,
    /// Bytes.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F64 | Self::U64 => 8,
            Self::F32 | Self::U32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }

    /// The type in which sums of this type are accumulated: gradients, master weights.
    pub const fn accumulator(self) -> Self {
        match self {
            Self::F64 => Self::F64,
            Self::F32 | Self::Bf16 | Self::F16 => Self::F32,
            Self::U64 | Self::U32 | Self::U8 => Self::U64,
        }
    }

    /// The spacing of 1.0 in this type (the unit roundoff is half of it); 0 for integers.
    pub const fn epsilon(self) -> f64 {
        match self {
            Self::F64 => f64::EPSILON,
            Self::F32 => f32::EPSILON as f64,
            Self::Bf16 => 1.0 / 128.0,
            Self::F16 => 1.0 / 1024.0,
            Self::U64 | Self::U32 | Self::U8 => 0.0,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::U64 => "u64",
            Self::U32 => "u32",
            Self::U8 => "u8",
        })
    }
}

/// A Rust type that buffers can hold.
pub trait Element: bytemuck::Pod + Send + Sync + PartialEq + fmt::Debug + sealed::Sealed {
    /// The matching [`DType`].
    const DTYPE: DType;
    #[doc(hidden)]
    fn wrap(values: Vec<Self>) -> HostVec;
    #[doc(hidden)]
    fn wrap_ref(values: &[Self]) -> Slice<'_>;
    #[doc(hidden)]
    fn of(slice: Slice<'_>) -> Option<&[Self]>;
    #[doc(hidden)]
    fn of_mut(slice: SliceMut<'_>) -> Option<&mut [Self]>;
    #[doc(hidden)]
    fn unwrap(host: HostVec) -> Option<Vec<Self>>;
}

/// A floating-point element, with conversions through f64.
pub trait Float: Element {
    /// Rounds to this type, to nearest even.
    fn from_f64(value: f64) -> Self;
    /// The exact value.
    fn to_f64(self) -> f64;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! element {
    ($type:ty, $variant:ident) => {
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            fn wrap(values: Vec<Self>) -> HostVec {
                HostVec::$variant(values)
            }
            fn wrap_ref(values: &[Self]) -> Slice<'_> {
                Slice::$variant(values)
            }
            fn of(slice: Slice<'_>) -> Option<&[Self]> {
                if let Slice::$variant(values) = slice { Some(values) } else { None }
            }
            fn of_mut(slice: SliceMut<'_>) -> Option<&mut [Self]> {
                if let SliceMut::$variant(values) = slice { Some(values) } else { None }
            }
            fn unwrap(host: HostVec) -> Option<Vec<Self>> {
                if let HostVec::$variant(values) = host { Some(values) } else { None }
            }
        }
    };
}

element!(f64, F64);
element!(f32, F32);
element!(bf16, Bf16);
element!(f16, F16);
element!(u64, U64);
element!(u32, U32);
element!(u8, U8);

impl Float for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

impl Float for f32 {
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Float for bf16 {
    fn from_f64(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}

impl Float for f16 {
    fn from_f64(value: f64) -> Self {
        Self::from_f64(value)
    }
    fn to_f64(self) -> f64 {
        Self::to_f64(self)
    }
}
