with rides as (

    select
        bike_id,
        cast(count(*) as integer) as rides,
        cast(sum(billable_minutes) as integer) as minutes_ridden,
        cast(sum(charge_cents) as integer) as earned_cents
    from {{ ref('fct_rides') }}
    group by bike_id

),

repairs as (

    select
        bike_id,
        cast(count(*) as integer) as repairs,
        {{ count_where('is_open') }} as open_repairs,
        cast(sum(cost_cents) as integer) as repair_cents
    from {{ ref('stg_repairs') }}
    group by bike_id

)

select
    bikes.bike_id,
    bikes.bike_type,
    bikes.status,
    coalesce(rides.rides, 0) as rides,
    coalesce(rides.minutes_ridden, 0) as minutes_ridden,
    coalesce(repairs.repairs, 0) as repairs,
    coalesce(repairs.open_repairs, 0) as open_repairs,
    {{ harbour_units.euros('coalesce(rides.earned_cents, 0)') }} as earned_euros,
    {{ harbour_units.euros('coalesce(repairs.repair_cents, 0)') }} as repair_euros,
    coalesce(repairs.repair_cents, 0) > coalesce(rides.earned_cents, 0) as costs_more_than_it_earns
from {{ ref('stg_bikes') }} as bikes
left join rides on bikes.bike_id = rides.bike_id
left join repairs on bikes.bike_id = repairs.bike_id
