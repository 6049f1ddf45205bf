with rides as (

    select * from {{ ref('stg_rides') }}

),

riders as (

    select * from {{ ref('stg_riders') }}

),

plans as (

    select * from {{ ref('stg_plans') }}

)

select
    rides.ride_id,
    rides.bike_id,
    rides.rider_id,
    riders.plan_id,
    rides.start_station_id,
    rides.end_station_id,
    rides.started_at,
    rides.ended_at,
    rides.ridden_on,
    rides.billable_minutes,
    plans.unlock_fee_cents
    + plans.per_minute_cents * greatest(rides.billable_minutes - plans.included_minutes, 0) as charge_cents,
    rides.loaded_at
from rides
inner join riders on rides.rider_id = riders.rider_id
inner join plans on riders.plan_id = plans.plan_id
