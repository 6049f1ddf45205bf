-- depends_on: {{ ref('rides') }}
select
    ride_id,
    bike_id,
    rider_id,
    start_station_id,
    end_station_id,
    started_at,
    ended_at,
    cast(started_at as date) as ridden_on,
    {{ harbour_units.minutes_between('started_at', 'ended_at') }} as billable_minutes,
    loaded_at
from {{ source('operations', 'rides') }}
