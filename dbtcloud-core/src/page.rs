//! Pages of a list, as dbt Cloud's API has them: limit, offset and a total.

/// The most items one page may hold (dbt Cloud's own maximum).
pub const PAGE_LIMIT: u32 = 100;
/// Up to here a total is exact; to count on would cost as much as the history is long.
pub const COUNT_LIMIT: u64 = 10_000;

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
    /// How many items match in all. Exact up to [`COUNT_LIMIT`]; beyond it is at least one more than this page
    /// and those before it hold as long as there are more, so that whoever turns pages until the total is
    /// reached sees everything.
    pub total: u64,
}

/// The total of a page, where matches were counted up to one more than [`COUNT_LIMIT`] and `more` says whether
/// any stand behind the `shown` of this page.
///
/// ```
/// use dbtcloud_core::page::{COUNT_LIMIT, Page, total};
/// assert_eq!(total(250, Page::new(100, 100), 100, true), 250);
/// let beyond = COUNT_LIMIT + 1;
/// assert_eq!(total(beyond, Page::new(100, 0), 100, true), beyond);
/// assert_eq!(total(beyond, Page::new(100, 40_000), 100, true), 40_101);
/// assert_eq!(total(beyond, Page::new(100, 40_000), 7, false), 40_007);
/// assert_eq!(total(beyond, Page::new(100, 90_000), 0, false), beyond);
/// ```
pub fn total(counted: u64, page: Page, shown: usize, more: bool) -> u64 {
    let seen = u64::from(page.offset()) + shown as u64;
    match (counted > COUNT_LIMIT, more, shown) {
        (false, _, _) | (true, false, 0) => counted,
        (true, true, _) => counted.max(seen + 1),
        (true, false, _) => seen,
    }
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
