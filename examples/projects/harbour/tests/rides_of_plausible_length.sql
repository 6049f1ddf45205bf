{{ config(severity=var('long_ride_severity')) }}

-- A bike that is out for hours was probably not docked properly.
select
    ride_id,
    bike_id,
    billable_minutes
from {{ ref('fct_rides') }}
where billable_minutes > {{ var('longest_ride_minutes') }}
