//! Enums with one name for each value.

/// An enum that `named!` declared.
pub trait Named: Copy + PartialEq + 'static {
    /// The name of the enum.
    const TYPE: &'static str;

    /// Its help. Empty in the npm package's modules, like the help of the values.
    const ABOUT: &'static str;

    /// Every value with its name and help.
    const VALUES: &'static [(Self, &'static str, &'static str)];

    /// Every name, for messages.
    fn names() -> Vec<&'static str> {
        Self::VALUES.iter().map(|(_, name, _)| *name).collect()
    }
}

/// Finds the value of a name.
///
/// # Errors
/// The expected names.
pub fn find<T: Named>(name: &str) -> Result<T, String> {
    T::VALUES
        .iter()
        .find(|(_, known, _)| *known == name)
        .map(|(value, _, _)| *value)
        .ok_or_else(|| unknown(&T::names(), name))
}

fn unknown(names: &[&str], found: &str) -> String {
    format!("expected one of {} but found {}", names.join(", "), crate::options::value::quoted(found))
}

/// Declares an enum with one name for each value, in options, records and reports.
macro_rules! named {
    (
        $(#[doc = $about:literal])+
        $(#[derive($($Derive:ident),+)])?
        $(#[allow($($allowed:tt)+)])?
        $visible:vis enum $Name:ident {
            $( $(#[doc = $help:literal])+ $(#[$default:ident])? $Value:ident = $name:literal ),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash $($(, $Derive)+)?)]
        $(#[allow($($allowed)+)])?
        $visible enum $Name {
            $( $(#[doc = $help])+ $(#[$default])? $Value ),+
        }

        impl $Name {
            /// The name in options, records and reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$Value => $name ),+
                }
            }
        }

        impl $crate::options::Named for $Name {
            const TYPE: &'static str = stringify!($Name);
            const ABOUT: &'static str =
                if cfg!(any(feature = "cli", test)) { concat!($($about),+) } else { "" };
            const VALUES: &'static [(Self, &'static str, &'static str)] = &[
                $( (Self::$Value, $name, if cfg!(any(feature = "cli", test)) { concat!($($help),+) } else { "" }) ),+
            ];
        }

        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $Name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = <std::borrow::Cow<'_, str> as serde::Deserialize>::deserialize(deserializer)?;
                $crate::options::find(&name).map_err(serde::de::Error::custom)
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}
pub(crate) use named;
