with days as (

    {{
        dbt.date_spine(
            datepart='day',
            start_date="cast('" ~ var('first_day') ~ "' as date)",
            end_date="cast('" ~ var('day_after_last') ~ "' as date)"
        )
    }}

),

movements as (

    select
        station_id,
        moved_on,
        cast(sum(departures) as integer) as departures,
        cast(sum(arrivals) as integer) as arrivals
    from {{ ref('int_station_movements') }}
    group by station_id, moved_on

),

station_days as (

    select
        stations.station_id,
        cast(days.date_day as date) as station_day,
        stations.docks
    from {{ ref('dim_stations') }} as stations
    cross join days

)

select
    station_days.station_id,
    station_days.station_day,
    coalesce(movements.departures, 0) as departures,
    coalesce(movements.arrivals, 0) as arrivals,
    coalesce(movements.arrivals, 0) - coalesce(movements.departures, 0) as net_change,
    cast(
        sum(coalesce(movements.arrivals, 0) - coalesce(movements.departures, 0)) over (
            partition by station_days.station_id
            order by station_days.station_day
            rows between unbounded preceding and current row
        ) as integer
    ) as drift,
    station_days.docks
from station_days
left join movements
    on
        station_days.station_id = movements.station_id
        and station_days.station_day = movements.moved_on
