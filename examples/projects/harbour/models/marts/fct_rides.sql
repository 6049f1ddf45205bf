{{
    config(
        materialized='incremental',
        unique_key='ride_id',
        incremental_strategy='delete+insert',
        on_schema_change='append_new_columns'
    )
}}

select
    ride_id,
    bike_id,
    rider_id,
    plan_id,
    start_station_id,
    end_station_id,
    started_at,
    ended_at,
    ridden_on,
    start_station_id = end_station_id as is_round_trip,
    billable_minutes,
    charge_cents,
    {{ harbour_units.euros('charge_cents') }} as charge_euros,
    loaded_at
from {{ ref('int_rides_priced') }}

{% if is_incremental() %}
-- The last night is taken again: a load that was cut short is completed by the next one.
where loaded_at >= (select coalesce(max(loaded_at), cast('1900-01-01' as timestamp)) from {{ this }})
{% endif %}
