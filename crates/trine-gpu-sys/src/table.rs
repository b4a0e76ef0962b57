//! The macro that declares a table of functions, each once.

/// Declares a table. Of each function: its name here, NVIDIA's symbol, its signature. Those under
/// `code` return a status, which becomes a `Result`; those under `value` return what they say.
///
/// Makes the table with an unsafe method for each function, a struct with a symbol for each, and in
/// tests `shapes`: the sizes of arguments and results, here and in the bindings `theirs`.
macro_rules! table {
    (
        $(#[$about:meta])*
        pub struct $table:ident named by $symbols:ident, as $theirs:path;
        code { $( $(#[$doc:meta])* $name:ident = $symbol:ident($($arg:ident: $type:ty),* $(,)?); )* }
        value { $(
            $(#[$value_doc:meta])*
            $value:ident = $value_symbol:ident($($value_arg:ident: $value_type:ty),* $(,)?) -> $result:ty;
        )* }
    ) => {
        $(#[$about])*
        #[derive(Debug)]
        pub struct $table {
            symbols: &'static $symbols,
            $( $name: unsafe extern "C" fn($($type),*) -> std::ffi::c_int, )*
            $( $value: unsafe extern "C" fn($($value_type),*) -> $result, )*
        }

        #[doc = concat!("The names of a library for the functions of [`", stringify!($table), "`].")]
        #[derive(Debug)]
        pub struct $symbols {
            $( #[doc = concat!("NVIDIA's `", stringify!($symbol), "`.")] pub $name: &'static str, )*
            $( #[doc = concat!("NVIDIA's `", stringify!($value_symbol), "`.")] pub $value: &'static str, )*
        }

        impl $symbols {
            /// NVIDIA's names.
            pub const CUDA: Self = Self {
                $( $name: stringify!($symbol), )*
                $( $value: stringify!($value_symbol), )*
            };
        }

        impl $table {
            $(
                #[doc = concat!("`", stringify!($symbol), "`.")]
                $(#[$doc])*
                ///
                /// # Safety
                /// The arguments are what the documentation of the function asks for, and stay so until it is done.
                ///
                /// # Errors
                /// If the function does not return 0.
                pub unsafe fn $name(&self, $($arg: $type),*) -> Result<(), crate::CallError> {
                    // SAFETY: the caller promises what the function asks for.
                    let code = unsafe { (self.$name)($($arg),*) };
                    if code == 0 { Ok(()) } else { Err(self.failure(self.symbols.$name, code)) }
                }
            )*
            $(
                #[doc = concat!("`", stringify!($value_symbol), "`.")]
                $(#[$value_doc])*
                ///
                /// # Safety
                /// The arguments are what the documentation of the function asks for.
                pub unsafe fn $value(&self, $($value_arg: $value_type),*) -> $result {
                    // SAFETY: the caller promises what the function asks for.
                    unsafe { (self.$value)($($value_arg),*) }
                }
            )*

            /// What a code of a function means.
            fn failure(&self, function: &'static str, code: std::ffi::c_int) -> crate::CallError {
                let (name, text) = self.describe(code);
                crate::CallError { function, code, name, text }
            }

            /// The symbol, and the sizes of the arguments and of the result: here and in the other bindings.
            #[cfg(test)]
            fn shapes() -> Vec<(&'static str, Vec<usize>, Vec<usize>)> {
                use $theirs as theirs;
                use crate::table::{Shape, shape, shape_of};
                vec![
                    $( (
                        stringify!($symbol),
                        <unsafe extern "C" fn($($type),*) -> std::ffi::c_int>::shape(),
                        shape_of(theirs::$symbol as unsafe fn($(shape::any!($arg)),*) -> _),
                    ), )*
                    $( (
                        stringify!($value_symbol),
                        <unsafe extern "C" fn($($value_type),*) -> $result>::shape(),
                        shape_of(theirs::$value_symbol as unsafe fn($(shape::any!($value_arg)),*) -> _),
                    ), )*
                ]
            }
        }

        impl crate::Table for $table {
            type Symbols = $symbols;

            unsafe fn fill(
                symbols: &'static $symbols,
                lookup: crate::Lookup,
            ) -> Result<Self, crate::LoadError> {
                Ok(Self {
                    symbols,
                    $( $name: {
                        let address = lookup(symbols.$name)?;
                        // SAFETY: the caller promises that the function there has this signature.
                        unsafe {
                            std::mem::transmute::<
                                std::ptr::NonNull<std::ffi::c_void>,
                                unsafe extern "C" fn($($type),*) -> std::ffi::c_int,
                            >(address)
                        }
                    }, )*
                    $( $value: {
                        let address = lookup(symbols.$value)?;
                        // SAFETY: the caller promises that the function there has this signature.
                        unsafe {
                            std::mem::transmute::<
                                std::ptr::NonNull<std::ffi::c_void>,
                                unsafe extern "C" fn($($value_type),*) -> $result,
                            >(address)
                        }
                    }, )*
                })
            }

            fn version(&self) -> Result<crate::Version, crate::CallError> {
                self.read_version()
            }
        }
    };
}

/// A pointer type of a library, of which only the library knows what is behind it.
macro_rules! handles {
    ($( $(#[$about:meta])* $name:ident; )*) => { $(
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(transparent)]
        pub struct $name(pub *mut std::ffi::c_void);
    )* };
}

#[cfg(test)]
pub(crate) use shape::{Shape, shape_of};

#[cfg(test)]
pub(crate) mod shape {
    /// The sizes in bytes of a function's arguments, then of its result.
    pub(crate) trait Shape {
        fn shape() -> Vec<usize>;
    }

    pub(crate) fn shape_of<F: Shape>(_: F) -> Vec<usize> {
        F::shape()
    }

    macro_rules! any {
        ($name:ident) => {
            _
        };
    }
    pub(crate) use any;

    macro_rules! shapes {
        ($($($type:ident)*;)*) => { $(
            impl<$($type,)* R> Shape for unsafe fn($($type),*) -> R {
                fn shape() -> Vec<usize> {
                    vec![$(size_of::<$type>(),)* size_of::<R>()]
                }
            }
            impl<$($type,)* R> Shape for unsafe extern "C" fn($($type),*) -> R {
                fn shape() -> Vec<usize> {
                    vec![$(size_of::<$type>(),)* size_of::<R>()]
                }
            }
        )* };
    }
    shapes! {
        ;
        A;
        A B;
        A B C;
        A B C D;
        A B C D E;
        A B C D E F;
        A B C D E F G;
        A B C D E F G H;
        A B C D E F G H I J;
        A B C D E F G H I J K;
        A B C D E F G H I J K L M N O P;
    }
}
