//! Numbers as types, so that a tile's size is known when it is compiled.

pub(crate) trait Count {
    const N: usize;
}

macro_rules! counts { ($($name:ident = $n:literal)*) => { $(
    #[derive(Clone, Copy)]
    pub(crate) struct $name;
    impl Count for $name {
        const N: usize = $n;
    }
)* } }
counts! {
    One = 1 Two = 2 Three = 3 Four = 4 Five = 5 Six = 6
    Seven = 7 Eight = 8 Nine = 9 Ten = 10 Eleven = 11 Twelve = 12
}
