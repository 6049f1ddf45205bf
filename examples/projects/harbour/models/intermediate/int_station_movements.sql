select
    start_station_id as station_id,
    cast(started_at as date) as moved_on,
    1 as departures,
    0 as arrivals
from {{ ref('stg_rides') }}

union all

select
    end_station_id as station_id,
    cast(ended_at as date) as moved_on,
    0 as departures,
    1 as arrivals
from {{ ref('stg_rides') }}
