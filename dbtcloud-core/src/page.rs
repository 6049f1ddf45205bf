//! Pages of a list, as dbt Cloud's API has them: limit, offset and a total.

/// The most items one page may hold (dbt Cloud's own maximum).
pub const PAGE_LIMIT: u32 = 100;

/// Which way a list runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    /// Smallest first.
    #[default]
    Ascending,
    /// Largest first.
    Descending,
}

/// Which part of a list is wanted. `limit` is at most [`PAGE_LIMIT`] by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    limit: u32,
    offset: u32,
}

impl Page {
    /// A page; a limit above [`PAGE_LIMIT`] is cut to it.
    pub fn new(limit: u32, offset: u32) -> Self {
        Self {
            limit: limit.min(PAGE_LIMIT),
            offset,
        }
    }

    /// How many items at most.
    pub fn limit(self) -> u32 {
        self.limit
    }

    /// How many items to pass over.
    pub fn offset(self) -> u32 {
        self.offset
    }
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: PAGE_LIMIT,
            offset: 0,
        }
    }
}

/// One page and how many items there are in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The items of this page, in order.
    pub items: Vec<T>,
    /// How many items match in all.
    pub total: u64,
}

impl<T> Paged<T> {
    /// The same page with each item changed; the first failure ends it.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<U, E>(self, f: impl FnMut(T) -> Result<U, E>) -> Result<Paged<U>, E> {
        Ok(Paged {
            items: self.items.into_iter().map(f).collect::<Result<_, _>>()?,
            total: self.total,
        })
    }
}
